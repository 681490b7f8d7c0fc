"""What replaces PyTorch's ATen kernels on an NVIDIA GPU, and what must not."""

import pytest

from sglang_fl.vendor import load_target
from sglang_fl_nvidia import NVIDIA
from sglang_fl_nvidia.aten import choices_of

HEAD = "op,kernel,fault,least_ratio,shape,host,own_host,in_graphs,beside_graphs,trouble"


def conclusion(row: str) -> tuple[bool, str]:
    (choice,) = choices_of(f"# python -m benchmarks.bench_aten; a GPU; versions\n{HEAD}\n{row}\n")
    return choice.is_replaced, choice.reason


def test_what_is_exact_and_fast_and_called_in_graphs_alone_is_replaced():
    replaced, reason = conclusion("embedding,embedding,,1.045,8x8,40,14,1,0,")
    assert replaced
    assert reason == (
        "exact, 1.045 of PyTorch's speed at least, called in CUDA graphs alone (a GPU; versions)"
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("lt.Tensor,lt,1 of 64 differ,1.2,64,60,9,1,0,", "differs from PyTorch: 1 of 64 differ"),
        ("mm,mm,,,,,,1,0,TimeoutError: late", "could not be measured: TimeoutError: late"),
        ("nonzero,nonzero,,,,19,76,0,1,", "cannot run in a CUDA graph"),
        ("mm,mm,,0.789,1x4096,119,18,7,0,", "0.789 of PyTorch's speed on the device at 1x4096"),
        ("cumsum,cumsum,,2.7,64,29,30,0,1,", "called beside CUDA graphs, where it costs 29 µs"),
        ("_softmax,softmax,,1.2,64,40,12,,,", "no model that was measured calls it"),
    ],
)
def test_the_first_objection_is_the_reason(row: str, reason: str):
    replaced, told = conclusion(row)
    assert not replaced
    assert told.startswith(reason)


def test_a_name_without_an_overload_means_the_default_one():
    (choice,) = choices_of(f"# x; a GPU\n{HEAD}\nmm,mm,,0.8,,1,1,7,0,\n")
    assert choice.names == ("mm.default",)


def test_nothing_in_quarantine_is_replaced():
    assert NVIDIA.aten is not None
    replaced = {name for choice in NVIDIA.aten.choices if choice.is_replaced for name in choice.names}
    assert not replaced & {name for entry in NVIDIA.aten.quarantine for name in entry.names}


def test_a_kernel_that_the_measurement_found_exact_stays_out_for_its_fault():
    assert NVIDIA.aten is not None
    (embedding,) = (choice for choice in NVIDIA.aten.choices if choice.names == ("embedding.default",))
    assert not embedding.is_replaced
    assert embedding.reason.startswith("in quarantine: counts elements in the index's own dtype")


@pytest.mark.gpu
@pytest.mark.parametrize("entry", NVIDIA.aten.quarantine, ids=lambda entry: entry.names[0])
def test_the_fault_of_each_entry_is_still_there(entry):
    load_target(entry.reproduction)()

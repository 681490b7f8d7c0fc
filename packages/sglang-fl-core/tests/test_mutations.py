"""The kit's score: of kernels that are wrong in one way each it must catch every one, in its aspect."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sglang_fl.conformance import ASPECTS, Verdict, verify_impl
from sglang_fl.conformance.simulated import SimulatedChip
from sglang_fl.ops import OPS
from sglang_fl.vendor import BackendKind, OpImpl

PATH = Path(__file__).with_name("wrong_kernels.py")
SOURCE = PATH.read_text()
CHIP = SimulatedChip("toychip", "toyccl")
WRONG = [
    line.removeprefix("def ").partition("(")[0]
    for line in SOURCE.splitlines()
    if line.startswith("def ") and "__" in line
]
#: Those that keep every case of their op; only another aspect tells.
EDGE = {"rotary_embedding__positions_in_float32", "mrope__positions_in_float32"}
EDGE |= {"rotary_embedding__row_offsets_in_32_bits", "silu_and_mul__offsets_in_32_bits"}
EDGE |= {f"silu_and_mul__{what}" for what in ("hides_a_nan", "spreads_a_nan", "clamps_infinity")}
GRAPH = {"silu_and_mul__largest_element_read_by_the_host", "silu_and_mul__table_from_the_host"}
GRAPH |= {"silu_and_mul__refuses_to_be_captured", "silu_and_mul__over_its_input_in_a_graph"}
GRAPH |= {f"silu_and_mul__{what}_outside_of_the_graph" for what in ("workspace_cleared", "launched")}
REPEAT = {"silu_and_mul__one_buffer_for_all_calls", "silu_and_mul__another_last_bit_each_time"}


@pytest.fixture
def verdict_of(write_module: Callable[[str], str]) -> Callable[..., Verdict]:
    """Verify a function of the module of wrong kernels."""
    module = write_module(SOURCE)

    def verify(name: str, *aspects: str) -> Verdict:
        impl = OpImpl(name.partition("__")[0], BackendKind.FLAGOS, "flagos", f"{module}:{name}")
        return verify_impl(impl, "cpu", aspects or ASPECTS)

    return verify


@pytest.mark.parametrize("name", [name for name in WRONG if name not in GRAPH])
def test_wrong_kernel_is_caught_in_its_aspect(verdict_of: Callable[..., Verdict], name: str):
    aspect = "edges" if name in EDGE else "repeat" if name in REPEAT else "cases"
    verdict = verdict_of(name, aspect)
    assert verdict.state == "fails", f"{name} passes {aspect}"
    if aspect != "cases":
        assert verdict_of(name, "cases").state == "passes"


@pytest.mark.on_chip(CHIP)
@pytest.mark.parametrize("name", sorted(GRAPH))
def test_wrong_kernel_is_caught_in_a_graph_alone(name: str):
    spec = importlib.util.spec_from_file_location("wrong_kernels", PATH)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["wrong_kernels"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["wrong_kernels"])
    impl = OpImpl(name.partition("__")[0], BackendKind.FLAGOS, "flagos", f"wrong_kernels:{name}")
    verdict = verify_impl(impl, "toychip", ("cases", "repeat", "graph"))
    assert verdict.faults["graph"], f"{name} passes"
    assert not verdict.faults["cases"] + verdict.faults["repeat"]


@pytest.mark.on_chip(CHIP)
@pytest.mark.parametrize("op", ["rms_norm", "rotary_embedding", "topk_softmax"])
def test_right_kernel_is_captured_in_every_case_that_it_takes(op: str):
    verdict = verify_impl(OpImpl(op, BackendKind.FLAGOS, "flagos", OPS[op].target), "toychip", ("graph",))
    assert (verdict.state, verdict.not_checked) == ("passes", [])
    assert verdict.graphs >= len(OPS[op].cases) - 2  # of the empty ones some have no element at all


@pytest.mark.on_chip(CHIP)
def test_reference_that_cannot_be_captured_is_told_and_is_no_fault():
    def verdict(kind: BackendKind) -> Verdict:
        impl = OpImpl("fused_moe", kind, str(kind.value), OPS["fused_moe"].target)
        return verify_impl(impl, "toychip", ("graph",))

    told = verdict(BackendKind.REFERENCE)
    assert (told.state, told.graphs) == ("not checked", 0)
    assert "a result whose shape only the device knows" in told.not_checked[0]
    assert "a result whose shape only the device knows" in verdict(BackendKind.FLAGOS).faults["graph"][0]


def test_there_are_wrong_kernels_of_every_sort():
    assert len(WRONG) == len(set(WRONG))
    assert len(WRONG) >= 60
    assert set(WRONG) > EDGE | REPEAT | GRAPH


@pytest.mark.parametrize("op", [name for name in OPS if name != "chunk_gated_delta_rule"])
def test_right_kernel_passes_in_all_aspects(op: str):
    verdict = verify_impl(OpImpl(op, BackendKind.REFERENCE, "reference", OPS[op].target), "cpu", ASPECTS[1:])
    assert verdict.state == "passes", verdict.faults
    assert verdict.not_checked == ["graph: a CPU captures no graphs"]
    assert verdict.host_us is not None


def test_implementation_whose_library_is_missing_is_not_checked():
    impl = OpImpl("rms_norm", BackendKind.FLAGOS, "flagos", "no_such:rms_norm", requires=("no_such",))
    verdict = verify_impl(impl, "cpu")
    assert (verdict.state, verdict.not_checked) == ("not checked", ["no_such is not installed"])

"""How kernels are compiled and launched: on one device, kept, in which way, and once for what is alike."""

import contextlib
import gc
import importlib
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_fl.errors import ContractError, UnsupportedError
from sglang_fl.ops import OPS
from sglang_fl.vendor import load_target
from sglang_fl_nvidia.flagos import heads, layer_norm, root_mean_square, rotation, routing
from sglang_fl_nvidia.flagos import launch as launching

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
#: Another device than the kernel's: on a GPU the host's memory, in the interpreter no memory at all.
ELSEWHERE = "cpu" if HAS_GPU else "meta"


def kernel(op: str) -> Callable[..., Any]:
    return load_target(f"sglang_fl_nvidia.flagos.{op}:{op}")


def ones(*shape: int, device: str = DEVICE) -> Tensor:
    return torch.ones(shape, device=device)


def weight_of_a_norm(x: Tensor, device: str) -> Any:
    return kernel("rms_norm")(x, ones(64, device=device), 1e-6, ones(3, 64))


def residual(x: Tensor, device: str) -> Any:
    return kernel("rms_norm")(x, ones(64), 1e-6, ones(3, 64, device=device))


def weight_of_a_norm_with_two_summands(x: Tensor, device: str) -> Any:
    options = {"post_residual_addition": ones(3, 64)}
    return kernel("rms_norm")(x, ones(64, device=device), 1e-6, ones(3, 64), **options)


def bias_of_a_norm(x: Tensor, device: str) -> Any:
    return kernel("layer_norm")(x, ones(64), ones(64, device=device), 1e-6)


def table_of_a_rotation(x: Tensor, device: str) -> Any:
    positions = torch.arange(3, device=DEVICE)
    return kernel("rotary_embedding")(positions, x, ones(3, 64), ones(8, 64, device=device), 64, True)


def positions_of_a_rotation(x: Tensor, device: str) -> Any:
    positions = torch.arange(3, device=device)
    return kernel("rotary_embedding")(positions, x, ones(3, 64), ones(8, 64), 64, True)


def bias_of_a_router(x: Tensor, device: str) -> Any:
    return kernel("topk_sigmoid")(x, 4, True, correction_bias=ones(64, device=device))


CALLS = [
    *(weight_of_a_norm, residual, weight_of_a_norm_with_two_summands, bias_of_a_norm),
    *(table_of_a_rotation, positions_of_a_rotation, bias_of_a_router),
]


@pytest.fixture(autouse=True)
def fresh_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (heads, root_mean_square, layer_norm, rotation, routing):
        monkeypatch.setattr(module, "_launches", {})


@pytest.mark.parametrize("is_first", [True, False], ids=["in-the-first-call", "after-a-right-call"])
@pytest.mark.parametrize("call", CALLS)
def test_a_tensor_on_another_device_is_refused_before_anything_is_written(call: Any, is_first: bool):
    x = torch.randn(3, 64, device=DEVICE)
    if not is_first:
        call(x.clone(), DEVICE)
    before = x.clone()
    with pytest.raises(UnsupportedError, match="not on one device"):
        call(x, ELSEWHERE)
    assert torch.equal(x, before)


def test_rows_of_one_are_launched_alike_whatever_their_stride():
    weight, cache = ones(64), ones(8, 64)
    for gap in range(20):
        x, added, post = (ones(4, 64 + 4 * gap)[1:2, :64] for _ in range(3))
        kernel("rms_norm")(x, weight, 1e-6, added, post_residual_addition=post)
        kernel("layer_norm")(x, weight, None, 1e-6)
        positions = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        kernel("rotary_embedding")(positions, x, added, cache, 64, True)
        kernel("topk_softmax")(x, 4, True)
    assert [len(module._launches) for module in (root_mean_square, layer_norm, rotation, routing)] == [1] * 4


#: A case of one row, of ops whose tables are keyed by more than rows.
OF_ONE = {
    "fused_moe": "one-token",
    "causal_conv1d_fn": "one-token",
    "causal_conv1d_update": "one-request",
    "fused_recurrent_gated_delta_rule_packed_decode": "one-request",
    "fused_sigmoid_gating_delta_rule_update": "one-token",
    "chunk_gated_delta_rule": "one-token",
}


def arguments_of(op: str, case: str) -> dict[str, Any]:
    (found,) = (each for each in OPS[op].cases if each.name == case)
    return found.arguments(torch.float32, DEVICE)


def spread(op: str, given: dict[str, Any], gap: int) -> dict[str, Any]:
    """Return a call whose tensors of one row have some other stride from it to the next one."""
    spread = {name: x.clone() if isinstance(x, Tensor) else x for name, x in given.items()}
    for name, axis in OPS[op].rows.items():
        x = spread[name]
        strides = list(x.stride())
        strides[axis] = x.numel() + gap
        spread[name] = x.new_empty(2 * x.numel() + gap).as_strided(x.shape, strides).copy_(x)
    return spread


def fresh_table(op: str, monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    table: dict[Any, Any] = {}
    monkeypatch.setattr(importlib.import_module(f"sglang_fl_nvidia.flagos.{op}"), "_launches", table)
    return table


def assert_right(op: str, given: dict[str, Any]) -> None:
    known = {name: x.clone() if isinstance(x, Tensor) else x for name, x in given.items()}
    right = OPS[op].results(OPS[op].reference(**known), known)
    found = OPS[op].results(kernel(op)(**given), given)
    torch.testing.assert_close((found[0], found[-1]), (right[0], right[-1]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("op", OF_ONE)
def test_one_row_of_any_stride_is_compiled_for_once(op: str, monkeypatch: pytest.MonkeyPatch):
    table, given = fresh_table(op, monkeypatch), arguments_of(op, OF_ONE[op])
    for gap in range(0, 80, 16):
        assert_right(op, spread(op, given, gap))
    assert len({id(launch) for launch in table.values()}) == 1


@pytest.mark.parametrize("op", ["causal_conv1d_update", "fused_recurrent_gated_delta_rule_packed_decode"])
def test_one_request_compiles_nothing_after_several(op: str, monkeypatch: pytest.MonkeyPatch):
    table, given = fresh_table(op, monkeypatch), arguments_of(op, "odd-requests")
    for stop in (len(given[next(iter(OPS[op].rows))]), 1):
        first = {name: given[name][:stop] for name in OPS[op].rows}
        assert_right(op, given | first)
    assert len({id(launch) for launch in table.values()}) == 1


@pytest.mark.parametrize(
    ("op", "case", "bounds", "of_sequences"),
    [
        ("causal_conv1d_fn", "continued", "query_start_loc", ("cache_indices", "has_initial_state")),
        ("chunk_gated_delta_rule", "several-sequences", "cu_seqlens", ("initial_state_indices",)),
        ("fused_sigmoid_gating_delta_rule_update", "short-runs", "cu_seqlens", ("initial_state_indices",)),
    ],
)
def test_several_sequences_are_right_after_one_whose_numbers_have_a_stride(
    op: str, case: str, bounds: str, of_sequences: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    table, given = fresh_table(op, monkeypatch), arguments_of(op, case)
    # Behind them lies padding, for what reads at a wrong stride.
    several = {x: torch.cat([given[x], torch.full_like(given[x], -1)])[: len(given[x])] for x in of_sequences}
    one = {name: given[name][::2][:1] for name in of_sequences}
    assert_right(op, given | one | {bounds: given[bounds][[0, -1]]})
    assert_right(op, given | several)
    assert len({id(launch) for launch in table.values()}) == 1


@pytest.mark.parametrize("op", ["rotary_embedding", "qk_norm_rope"])
def test_one_token_compiles_nothing_after_many_dense_ones(op: str):
    pools = [torch.zeros(9, 2, 64, device=DEVICE) for _ in range(2)]
    for tokens in (5, 1):
        positions = torch.arange(tokens, device=DEVICE)
        given = {"query": ones(tokens, 256), "key": ones(tokens, 128), "value": ones(tokens, 128)}
        given |= {"positions": positions, "cache_loc": positions, "cos_sin_cache": ones(8, 64)}
        given |= {"head_size": 64, "is_neox_style": True, "k_buffer": pools[0], "v_buffer": pools[1]}
        if op == "qk_norm_rope":
            given |= {"q_weight": ones(64), "k_weight": ones(64), "eps": 1e-6}
        kernel(op)(**given)
    assert len(heads._launches) == 1


@pytest.mark.parametrize("is_first", [True, False], ids=["before-it-is-compiled", "after"])
@pytest.mark.parametrize("op", ["rms_norm", "layer_norm", "topk_sigmoid"])
def test_a_weight_with_one_axis_more_is_refused(op: str, is_first: bool):
    x, weight = torch.randn(3, 64, device=DEVICE), ones(64)
    call = {
        "rms_norm": lambda w: kernel(op)(x, w, 1e-6),
        "layer_norm": lambda w: kernel(op)(x, w, None, 1e-6),
        "topk_sigmoid": lambda w: kernel(op)(x, 4, True, correction_bias=w),
    }[op]
    if not is_first:
        call(weight)
    with pytest.raises(ContractError, match=r"does not fit|is not one for each"):
        call(weight.view(1, 64))


def test_positions_and_offsets_that_are_not_one_for_each_token_are_refused():
    x, cache = ones(4, 64), ones(8, 64)
    positions = torch.arange(4, device=DEVICE)
    with pytest.raises(ContractError, match="offsets"):
        kernel("rotary_embedding")(positions, x, x.clone(), cache, 64, True, positions[:2])
    with pytest.raises(ContractError, match="neither"):
        kernel("mrope")(positions.expand(2, 4), x, x.clone(), cache, 64, True, [16, 8, 8])
    with pytest.raises(ContractError, match="is not 4 rows"):
        kernel("rotary_embedding")(positions, ones(8, 64), x, cache, 64, True)


def launcher(*names: str) -> type:
    space: dict[str, Any] = {}
    exec(f"def call(self, {', '.join(names)}, *args): pass", space)
    return type("Launcher", (), {"__call__": space["call"]})


FORM = ("gridX", "gridY", "gridZ", "stream", "function")


@pytest.mark.parametrize("version", ["3.6.0", "3.7.1", "3.8.0", "3.8.0+git1234"])
def test_known_releases_are_launched_directly(version: str):
    assert launching.why_not_directly(version, launcher(*FORM)) is None


@pytest.mark.parametrize("version", ["3.5.1", "3.9.0", "4.0.0", "unknown"])
def test_other_releases_are_launched_in_public(version: str):
    assert "not one of the releases" in str(launching.why_not_directly(version, launcher(*FORM)))


def test_a_launcher_that_takes_other_arguments_is_not_called():
    reason = launching.why_not_directly("3.8.0", launcher("grid", "stream", "function"))
    assert reason == "the launcher of Triton 3.8.0 takes self, grid, stream, function, args"


def test_the_installed_launcher_is_known():
    from triton import __version__
    from triton.backends.nvidia.driver import CudaLauncher

    assert launching.why_not_directly(__version__, CudaLauncher) is None


class Binary:
    """What Triton compiles a kernel to."""

    function, packed_metadata = 17, "metadata"

    def __init__(self, called: list[tuple[Any, ...]]) -> None:
        self.run = lambda *args: called.append(args)


class Kernel:
    """A kernel as Triton has it, and what it was called with."""

    def __init__(self) -> None:
        self.called: list[tuple[Any, ...]] = []
        self.binary: Any = None

    def warmup(self, *args: Any, **kwargs: Any) -> Binary:
        binary = Binary(self.called)
        self.binary = weakref.ref(binary)
        return binary

    def __getitem__(self, grid: tuple[int]) -> Any:
        return lambda *args, **kwargs: self.called.append((grid, args, kwargs))


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_IS_INTERPRETED", False)
    monkeypatch.setattr(launching, "_device_of", lambda arguments: 0)
    monkeypatch.setattr(launching, "capability", lambda device: (9, 0))
    monkeypatch.setattr(launching, "_stream_of", lambda device: 5)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())


@pytest.mark.usefixtures("fake_gpu")
def test_a_launch_keeps_what_was_compiled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launching, "_IN_PUBLIC", None)
    made = Kernel()
    launch = launching.compiled(made, ones(4), 1.0, is_aligned=True, num_warps=4, WIDTH=64)
    gc.collect()
    assert made.binary() is not None
    launch(3, 1234, 1.0)
    assert made.called == [(3, 1, 1, 5, 17, "metadata", None, None, None, 1234, 1.0, 64, True)]
    del launch
    gc.collect()
    assert made.binary() is None


@pytest.mark.usefixtures("fake_gpu")
def test_the_public_way_is_taken_and_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(launching, "_IN_PUBLIC", "Triton 4.0 is not known")
    launching._say_once.cache_clear()
    made, x = Kernel(), ones(4)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            launching.compiled(made, x, 1.0, is_aligned=True, num_warps=4, WIDTH=64)(3, x, 1.0)
    options = {"WIDTH": 64, "OVERLAP": True, "num_warps": 4, "launch_pdl": True}
    assert made.called == [((3,), (x, 1.0), options)] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "kernels are launched in Triton's public way, which costs about 7 µs a call: Triton 4.0 is not known"
    ]

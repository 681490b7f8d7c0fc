"""Marks and traces in a process that runs a model: PyTorch's real profiler, a scheduler of few layers."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_fl.aten.switchboard import AtenSwitchboard
from sglang_fl.dispatch import layer_2_calls
from sglang_fl.ops import OPS
from sglang_fl.profiling.ranges import AtenRanges, mark_kernel, mark_shortcut
from sglang_fl.profiling.recorder import METHOD, Recorder
from sglang_fl.profiling.shares import phases_of
from sglang_fl.profiling.steps import steps_of
from sglang_fl.profiling.trace import read_trace
from sglang_fl.vendor import AtenKernel, BackendKind, OpImpl

IMPL = OpImpl("silu_and_mul", BackendKind.FLAGOS, "flagos", "somewhere:silu_and_mul")


class SiluAndMul(torch.nn.Module):
    """A layer that is ours."""

    def __init__(self) -> None:
        super().__init__()
        self._forward_method: Any = None  # as SGLang's layers have it from the beginning
        self._forward_method = mark_kernel(OPS["silu_and_mul"], IMPL, self, OPS["silu_and_mul"].reference)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward_method(x.neg())


class RadixAttention(torch.nn.Module):
    """A layer that a backend of SGLang's runs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.softmax(-1)


class Failing(torch.nn.Module):
    """A layer that raises."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no")


class Scheduler:
    """As much of SGLang's as is asked."""

    def __init__(self, *layers: torch.nn.Module) -> None:
        self.layers = layers
        runner = SimpleNamespace(attn_backend=SimpleNamespace(), model=None)
        runner.attn_backend.decode_attention_backend_str = "of_decode"
        runner.attn_backend.prefill_attention_backend_str = "of_prefill"
        self.tp_worker = SimpleNamespace(model_runner=runner)

    def run_batch(self, batch: Any) -> torch.Tensor:
        x = torch.ones(4, 64)
        for layer in self.layers:
            x = layer(x)
        return x


def batch(mode: str) -> Any:
    asked = SimpleNamespace(
        is_decode=lambda: mode == "decode", is_extend=lambda: mode == "prefill", name=mode.upper()
    )
    return SimpleNamespace(forward_mode=asked, batch_size=lambda: 4, extend_num_tokens=9)


def pieces(folder: Path) -> dict[str, set[tuple[str, str]]]:
    steps = steps_of(read_trace(folder / "trace.rank0.json"))
    return {
        phase.name: {(share.piece.who.value, share.piece.what) for share in phase.shares}
        for phase in phases_of([steps])
    }


def test_a_step_is_traced_by_who_ran_what(tmp_path: Path):
    scheduler: Any = Scheduler(SiluAndMul(), RadixAttention())
    Recorder(tmp_path, "cpu").attach(scheduler)
    do = getattr(scheduler, METHOD)
    scheduler.run_batch(batch("decode"))  # not recorded
    do("start")
    scheduler.run_batch(batch("prefill"))
    scheduler.run_batch(batch("decode"))
    scheduler.run_batch(batch("idle"))
    do("stop")
    assert json.loads((tmp_path / "step.rank0.json").read_text()) == {"step": "stop", "error": ""}
    assert json.loads((tmp_path / "device.rank0.json").read_text())["device"] == "cpu"
    expected = {
        ("flagos", "silu_and_mul"),
        ("around", "SiluAndMul around silu_and_mul"),
        ("sglang", "RadixAttention (of_decode)"),
        ("sglang", "outside of layers"),
    }
    found = pieces(tmp_path)
    assert found["decode"] == expected
    assert ("sglang", "RadixAttention (of_prefill)") in found["prefill"]
    assert found.keys() == {"decode", "prefill", "idle"}
    assert "run_batch" not in vars(scheduler)


def test_a_layer_that_raises_leaves_no_range_open(tmp_path: Path):
    scheduler: Any = Scheduler(Failing())
    Recorder(tmp_path, "cpu").attach(scheduler)
    do = getattr(scheduler, METHOD)
    do("start")
    with pytest.raises(RuntimeError, match="no"):
        scheduler.run_batch(batch("decode"))
    scheduler.layers = (RadixAttention(),)
    scheduler.run_batch(batch("decode"))
    do("stop")
    assert pieces(tmp_path)["decode"] == {
        ("sglang", "RadixAttention (of_decode)"),
        ("sglang", "outside of layers"),
    }


def test_what_fails_is_answered(tmp_path: Path):
    scheduler: Any = Scheduler()
    Recorder(tmp_path, "cpu").attach(scheduler)
    getattr(scheduler, METHOD)("stop")
    assert "AttributeError" in json.loads((tmp_path / "step.rank0.json").read_text())["error"]


def test_marks_keep_signatures():
    import inspect

    reference = OPS["silu_and_mul"].reference
    marked = mark_kernel(OPS["silu_and_mul"], IMPL, object(), reference)
    assert inspect.signature(marked) == inspect.signature(reference)
    assert mark_shortcut("fused", len)([1, 2]) == 2


@pytest.mark.parametrize(
    ("module", "kind"), [("flag_gems.ops.neg", "flagos"), ("sglang_fl_x.vendor.neg", "vendor")]
)
def test_a_kernel_of_layer_1_is_marked_unless_a_kernel_of_layer_2_calls_it(
    tmp_path: Path, module: str, kind: str
):
    def negative(x: torch.Tensor) -> torch.Tensor:
        return x.mul(-1)

    kernel = AtenKernel("neg", "neg", negative, module)
    board = AtenSwitchboard((kernel,), "cpu", AtenRanges())
    scheduler: Any = Scheduler(SiluAndMul())
    scheduler.layers[0]._forward_method = layer_2_calls.marked(
        mark_kernel(OPS["silu_and_mul"], IMPL, scheduler.layers[0], lambda x: x.neg())
    )
    Recorder(tmp_path, "cpu").attach(scheduler)
    do = getattr(scheduler, METHOD)
    board.switch_on(["aten::neg.default"])
    try:
        do("start")
        scheduler.run_batch(batch("decode"))
        do("stop")
    finally:
        board.switch_off(["aten::neg.default"])
    found = pieces(tmp_path)["decode"]
    assert (kind, "aten::neg") in found
    assert ("flagos", "silu_and_mul") in found

"""The calls of a model, judged and timed in processes that kernels may bring down."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sglang_fl.dispatch.kept_calls import KeptCalls
from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import OPS, Op
from sglang_fl.tune import calls as calls_module
from sglang_fl.tune.budget import Budget, OutOfTimeError
from sglang_fl.tune.calls import recorded_calls, spread
from sglang_fl.tune.decide import Measured, decide_op
from sglang_fl.tune.op_bench import _given
from sglang_fl.tune.op_runs import measure_op
from sglang_fl.tune.subject import Subject, passes
from sglang_fl.vendor import BackendKind, OpImpl

pytestmark = pytest.mark.usefixtures("forked")

SILU, NORM = OPS["silu_and_mul"], OPS["rms_norm"]

KERNELS = """
import os, signal, time
from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import OPS

silu, norm = OPS["silu_and_mul"].reference, OPS["rms_norm"].reference

def slow(x):
    time.sleep(0.02)
    return silu(x)

def fast(x):
    return silu(x)

def wrong(x):
    return silu(x) * 1.1

def kills(x):
    os.kill(os.getpid(), signal.SIGSEGV)

def raises(x):
    raise ValueError("not on this chip")

def refuses(x):
    raise UnsupportedError("float32 alone")

def norm_in_place(x, weight, eps, residual=None):
    results = norm(x, weight, eps, residual)
    if residual is not None:
        residual.copy_(results[1])
    return results
"""


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch) -> Callable[..., dict[str, str]]:
    """``kernels(*names)`` returns targets of them that a process of its own can import."""
    (tmp_path / "kernels_to_tune.py").write_text(KERNELS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return lambda *names: {name: f"kernels_to_tune:{name}" for name in names}


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., Path]:
    """``keep(op, *arguments)`` keeps calls of an op's reference; returns the folder."""
    folder = tmp_path / "calls"
    keeper = KeptCalls(folder)

    def keep(op: Op, *given: tuple[Any, ...]) -> Path:
        kernel = keeper.wrap(
            op, OpImpl(op.name, BackendKind.REFERENCE, "reference", op.target), op, op.reference
        )
        for arguments in given:
            kernel(*arguments)
        return folder

    return keep


def silu_calls(keep, *rows: int) -> list:
    folder = keep(SILU, *((torch.randn(count, 16),) for count in rows))
    return recorded_calls(folder)["silu_and_mul"]


def test_calls_are_read_by_op_the_smallest_first(keep):
    norm = (torch.randn(2, 8), torch.ones(8), 1e-6)
    keep(NORM, norm)
    found = recorded_calls(keep(SILU, (torch.randn(9, 16),), (torch.randn(1, 16),)))
    assert {op: [call.shapes for call in calls] for op, calls in found.items()} == {
        "rms_norm": ["x 2x8, weight 8"],
        "silu_and_mul": ["x 1x16", "x 9x16"],
    }
    assert found["rms_norm"][0].layer == "Op"


def test_of_many_calls_some_are_taken_evenly(keep, monkeypatch):
    calls = silu_calls(keep, *range(1, 31))
    assert len(spread(calls)) == calls_module.MOST_CALLS
    assert (spread(calls)[0], spread(calls)[-1]) == (calls[0], calls[-1])
    assert spread(calls[:3]) == calls[:3]


def test_no_calls_are_none(tmp_path: Path):
    assert recorded_calls(tmp_path) == {}


def test_each_implementation_is_judged_whatever_the_others_do(kernels, keep):
    targets = kernels("slow", "kills", "wrong", "raises", "refuses", "fast")
    found = measure_op(Subject("silu_and_mul", "slow", targets, {}), silu_calls(keep, 1, 4), Budget(5), False)
    assert {impl: judged.state for impl, judged in found.judged.items()} == {
        "slow": "right",
        "kills": "ends its process",
        "wrong": "wrong",
        "raises": "raised",
        "refuses": "refused",
        "fast": "right",
    }
    assert found.judged["kills"].text == "SIGSEGV"
    assert found.judged["refuses"].text == "float32 alone"
    assert [(call.shapes, call.how, sorted(call.times)) for call in found.timed] == [
        ("x 1x16", "clock", ["fast", "slow"]),
        ("x 4x16", "clock", ["fast", "slow"]),
    ]
    verdict = decide_op(found)
    assert verdict.best == "fast"
    assert verdict.gain is not None
    assert verdict.gain.value > 10


def test_a_kernel_in_place_starts_from_the_recorded_arguments_each_time(kernels, keep):
    calls = (torch.full((2, 8), 3e37), torch.ones(8), 1e-6, torch.full((2, 8), 3e37))
    folder = keep(NORM, calls)
    targets = {**kernels("norm_in_place"), "reference": NORM.target}
    subject = Subject("rms_norm", "norm_in_place", targets, {})
    found = measure_op(subject, recorded_calls(folder)["rms_norm"], Budget(5), False)
    assert {impl: judged.state for impl, judged in found.judged.items()} == dict.fromkeys(targets, "right")
    assert len(found.timed) == 1


def test_one_exact_implementation_that_runs_at_present_needs_no_times(kernels, keep):
    targets = kernels("fast", "wrong")
    found = measure_op(Subject("silu_and_mul", "fast", targets, {}), silu_calls(keep, 2), Budget(5), False)
    assert found.timed == ()
    assert decide_op(found).reason == "there is no other exact kernel"


def test_an_option_that_a_kernel_does_not_take_is_a_refusal():
    op = OPS["rotary_embedding"]
    without = OPS["rotary_embedding"].signature.replace(
        parameters=[p for p in op.signature.parameters.values() if p.kind is not p.KEYWORD_ONLY]
    )

    def kernel(*args: Any, **kwargs: Any) -> None:
        raise AssertionError

    kernel.__signature__ = without
    name = op.options[0]
    assert _given(op, kernel, {"positions": 1, name: op.signature.parameters[name].default}) == {
        "positions": 1
    }
    with pytest.raises(UnsupportedError, match=f"it does not take {name}"):
        _given(op, kernel, {name: torch.ones(1)})


def test_minutes_that_are_over_are_no_verdict(kernels, keep):
    subject = Subject("silu_and_mul", "fast", kernels("fast", "slow"), {})
    found = measure_op(subject, silu_calls(keep, 2), Budget(0), False)
    assert {judged.state for judged in found.judged.values()} == {"not measured"}
    assert decide_op(found).best is None


def test_a_budget_counts_down(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("sglang_fl.tune.budget.time.monotonic", lambda: now[0])
    budget = Budget(2)
    assert (str(budget), budget.less(60).left) == ("2:00", 60)
    now[0] += 90
    assert (str(budget), budget.has(29), budget.has(31)) == ("0:30", True, False)
    budget.require(29)
    with pytest.raises(OutOfTimeError, match="0:30 of the minutes are left"):
        budget.require(31)
    now[0] += 90
    assert budget.left == 0


def test_an_op_that_stands_for_others_is_recorded_by_itself():
    assert passes(["qk_norm_rope", "rms_norm", "silu_and_mul"]) == (
        ("rms_norm", "silu_and_mul"),
        ("qk_norm_rope",),
    )
    assert passes([]) == ()


def test_measurements_say_what_they_are_of():
    assert decide_op(Measured("rms_norm", "a", {})).reason == "no implementation is exact"

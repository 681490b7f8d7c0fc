"""Kernels of ATen ops, judged and timed in a process that they may bring down, and what follows."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sglang_fl.aten.recorded_calls import CallMode
from sglang_fl.dispatch.kept_calls import CallFolder
from sglang_fl.startup import configure
from sglang_fl.tune import aten_runs
from sglang_fl.tune.aten_decide import KERNEL, PYTORCH, decide_aten
from sglang_fl.tune.aten_runs import AtenRuns, NoKernelsError
from sglang_fl.tune.budget import Budget, OutOfTimeError
from sglang_fl.tune.calls import RecordedCall, recorded_calls
from sglang_fl.tune.decide import Judged, Measured, Timed
from sglang_fl.vendor import AtenOp

pytestmark = pytest.mark.usefixtures("forked")

VENDOR = """
import os, time
import torch
from sglang_fl.vendor import AtenKernel, AtenOffer, AtenOp, Vendor

def why():
    return None

def ops():
    return [AtenOp(op.overload, op.name) for op in KERNELS]

def kernels():
    print("a library that prints")
    if os.environ.get("TOY_BREAKS"):
        raise RuntimeError("no driver")
    return KERNELS

def neg(x):
    return torch.sub(torch.zeros_like(x), x)

def slow(x):
    time.sleep(0.01)
    return torch.div(x, torch.ones_like(x)).abs_()

def wrong(x):
    return torch.ones_like(x)

def kills(x):
    os.abort()

def hangs(x):
    time.sleep(60)

def add_(x, y, *, alpha=1):
    time.sleep(0.001)
    x.copy_(torch.sub(x, y, alpha=-alpha))
    return x

def noise(x, p=0.5):
    return x

KERNELS = (
    AtenKernel("neg", "neg", neg), AtenKernel("abs", "abs", slow), AtenKernel("cos", "cos", wrong),
    AtenKernel("sin", "sin", kills), AtenKernel("exp", "exp", hangs), AtenKernel("add_.Tensor", "add_", add_),
    AtenKernel("bernoulli.p", "noise", noise),
)
CHIP = Vendor("toy", "cpu", 1, __name__ + ":why", aten=AtenOffer(__name__ + ":ops", __name__ + ":kernels"))
"""
CALLS = {
    "neg": lambda x: x.neg(),
    "abs": lambda x: x.abs(),
    "cos": lambda x: x.cos(),
    "sin": lambda x: x.sin(),
    "exp": lambda x: x.exp(),
    "add_.Tensor": lambda x: x.add_(x.clone(), alpha=2),
    "bernoulli.p": lambda x: torch.bernoulli(x, 0.5),
}


@pytest.fixture
def calls_of(tmp_path: Path) -> Callable[..., list[RecordedCall]]:
    """``calls_of(overload)`` returns two calls of an op."""

    def calls_of(overload: str) -> list[RecordedCall]:
        op = AtenOp(overload, overload.partition(".")[0])
        with torch.inference_mode(), CallMode([op], "cpu", CallFolder(tmp_path / overload)):
            for rows in (2, 5):
                CALLS[overload](torch.full((rows, 3), 0.5))
        return recorded_calls(tmp_path / overload)[op.exact]

    return calls_of


@pytest.fixture
def runs(tmp_path: Path, install: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Iterator[AtenRuns]:
    install("toy", VENDOR)
    monkeypatch.setenv("SGLANG_FL_PLATFORM", "toy")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    configure.cache_clear()
    with AtenRuns(tmp_path / "aten.log", is_cuda=False) as runs:
        yield runs


def test_kernels_are_judged_and_timed_whatever_the_others_do(
    runs: AtenRuns, calls_of: Callable[..., list[RecordedCall]], monkeypatch: pytest.MonkeyPatch
):
    def measured(overload: str) -> Measured:
        return runs.measure(AtenOp(overload, "x").exact, PYTORCH, calls_of(overload), Budget(5))

    found = {overload: measured(overload) for overload in CALLS if overload != "exp"}
    monkeypatch.setattr(aten_runs, "LONGEST", 1.0)
    found["exp"] = measured("exp")
    assert {overload: measured.judged[KERNEL].state for overload, measured in found.items()} == {
        "neg": "right",
        "abs": "right",
        "cos": "wrong",
        "sin": "ends its process",
        "exp": "hangs",
        "add_.Tensor": "right",
        "bernoulli.p": "not judged",
    }
    assert found["sin"].judged[KERNEL].text == "SIGABRT"
    assert found["cos"].judged[KERNEL].text.startswith("aten::cos: inexact: ")
    assert [(call.shapes, call.how, sorted(call.times)) for call in found["abs"].timed] == [
        ("self 2x3", "clock", ["kernel", "pytorch"]),
        ("self 5x3", "clock", ["kernel", "pytorch"]),
    ]
    verdict = decide_aten(found["abs"])
    assert (verdict.op, verdict.best) == ("aten::abs.default", None)
    assert verdict.reason.endswith("times the speed of PyTorch's")
    assert float(verdict.reason.split()[0]) < 0.1


def test_a_kernel_that_writes_its_arguments_starts_from_the_recorded_ones(
    runs: AtenRuns, calls_of: Callable[..., list[RecordedCall]]
):
    calls = calls_of("add_.Tensor")
    before = [call.path.read_bytes() for call in calls]
    found = runs.measure("aten::add_.Tensor", KERNEL, calls, Budget(5))
    assert found.judged[KERNEL] == Judged("right")
    assert len(found.timed) == 2
    assert [call.path.read_bytes() for call in calls] == before
    assert decide_aten(found).best == PYTORCH


def test_a_library_that_cannot_be_imported_is_told(
    runs: AtenRuns, calls_of: Callable[..., list[RecordedCall]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TOY_BREAKS", "1")
    with pytest.raises(NoKernelsError, match=r"the ATen kernels cannot be imported: .*no driver"):
        runs.measure("aten::neg.default", PYTORCH, calls_of("neg"), Budget(5))


def test_minutes_that_are_over_are_no_verdict(runs: AtenRuns, calls_of: Callable[..., list[RecordedCall]]):
    with pytest.raises(OutOfTimeError, match="of the minutes are left"):
        runs.measure("aten::neg.default", PYTORCH, calls_of("neg"), Budget(0))


def timed(pytorch: float, kernel: float) -> tuple[Timed, ...]:
    steady = (1.0, 1.01, 0.99, 1.0, 1.0)
    return (
        Timed(
            "x", "clock", {PYTORCH: [pytorch * f for f in steady], KERNEL: [kernel * f for f in steady[::-1]]}
        ),
    )


@pytest.mark.parametrize(
    ("present", "judged", "times", "best", "is_wrong", "reason"),
    [
        (PYTORCH, Judged("right"), (20, 10), KERNEL, False, "2 ± "),
        (PYTORCH, Judged("right"), (10, 20), None, False, "0.5 ± "),
        (PYTORCH, Judged("right"), (10, 10), None, False, "1 ± "),
        (KERNEL, Judged("right"), (10, 20), PYTORCH, False, "0.5 ± "),
        (KERNEL, Judged("right"), (20, 10), None, False, "2 ± "),
        (KERNEL, Judged("right"), (10, 10), None, False, "1 ± "),
        (KERNEL, Judged("wrong", "by far"), (), PYTORCH, True, "the kernel is not exact"),
        (PYTORCH, Judged("hangs"), (), None, False, "the kernel is not exact"),
        (
            KERNEL,
            Judged("not judged", "random"),
            None,
            None,
            False,
            "whether the kernel is exact is not known",
        ),
        (KERNEL, Judged("right"), (), None, False, "no time was measured"),
    ],
)
def test_what_is_exact_and_faster_is_listed_and_what_is_not_is_given_back(
    present: str,
    judged: Judged,
    times: tuple[float, float] | None,
    best: str | None,
    is_wrong: bool,
    reason: str,
):
    found = Measured("aten::x.default", present, {KERNEL: judged}, timed(*times) if times else ())
    verdict = decide_aten(found)
    assert (verdict.best, verdict.is_present_wrong) == (best, is_wrong)
    assert verdict.reason.startswith(reason)

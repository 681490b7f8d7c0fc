"""A machine on which ``sglang-fl tune`` runs: its recordings, times and engines are made up."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from sglang_fl.aten.recorded_calls import CallMode
from sglang_fl.cli import app
from sglang_fl.dispatch.kept_calls import CallFolder, KeptCalls
from sglang_fl.ops import OPS
from sglang_fl.startup import configure
from sglang_fl.tune import procedure, recording, trials
from sglang_fl.tune.aten_runs import AtenRuns
from sglang_fl.tune.budget import Budget, OutOfTimeError
from sglang_fl.tune.decide import Judged, Measured, Timed
from sglang_fl.tune.engines import EngineEndedError, Launch, Load
from sglang_fl.vendor import AtenOp, BackendKind, OpImpl

IMPLS = """
    OpImpl("silu_and_mul", VENDOR, "vendor.toy", "toy:slow"),
    OpImpl("silu_and_mul", VENDOR, "vendor.toy.fast", "toy:fast"),
    OpImpl("silu_and_mul", VENDOR, "vendor.toy.wrong", "toy:wrong"),
    OpImpl("rms_norm", VENDOR, "vendor.toy", "toy:norm"),
"""
#: Microseconds of each implementation; what has none is wrong.
TIMES = {"vendor.toy": 100.0, "vendor.toy.fast": 10.0, "reference": 150.0}
STEADY = (1.0, 1.001, 0.999, 1.0, 1.0)
#: Microseconds of kernels of ATen ops, where PyTorch's take 100; what has none is wrong.
ATEN_TIMES = {"aten::neg.default": 20.0, "aten::mul.Tensor": 50.0, "aten::abs.default": 300.0}
#: A vendor with kernels for ATen ops; one of them, which is slow, is replaced at present.
ATEN_VENDOR = """
from sglang_fl.vendor import AtenChoice, AtenKernel, AtenOffer, AtenOp, AtenQuarantined, BackendKind
from sglang_fl.vendor import OpImpl, Vendor

VENDOR = BackendKind.VENDOR
NAMES = {"neg": "neg", "mul.Tensor": "mul", "abs": "abs", "cos": "cos", "sin": "sin", "exp": "exp"}

def why():
    return None

def ops():
    return [AtenOp(overload, name) for overload, name in NAMES.items()]

CHIP = Vendor(
    "toy", "cpu", 1, __name__ + ":why", impls=(),
    aten=AtenOffer(
        __name__ + ":ops", __name__ + ":kernels",
        choices=(AtenChoice(("abs", "exp"), True, "fast elsewhere"),),
        quarantine=(AtenQuarantined(("sin",), "it raises", "torch", ">=2", __name__ + ":why"),),
    ),
)
"""
#: How many times as fast an engine is on an implementation.
SPEEDS = {"vendor.toy.fast": 1.5, "sglang": 0.9, "aten::neg.default": 1.2, "layer 1 is off": 0.9}


class Machine:
    """Pretended engines and kernels, and what was asked of them.

    Parameters
    ----------
    speeds : how many times as fast an engine is where its file names this
    seconds : that an engine takes; no other time passes
    """

    def __init__(self) -> None:
        self.speeds = dict(SPEEDS)
        self.seconds = self.now = 0.0
        self.started: list[str] = []
        self.measured: list[str] = []
        self.fails = ""
        self.runs_other = False
        self.called = ["silu_and_mul", "rms_norm"]
        self.ends_at: float | None = None
        self.aten_ran = set(ATEN_TIMES)

    @contextlib.contextmanager
    def start(
        self, launch: Launch, flags: object, settings: Mapping[str, str], log: Path, budget: Budget
    ) -> Iterator[Any]:
        if self.ends_at is not None and len(self.started) >= self.ends_at:
            raise KeyboardInterrupt
        file = settings.get("SGLANG_FL_CONFIG")
        content = (yaml.safe_load(Path(file).read_text()) or {}) if file else {}
        orders = content.get("op_backends", {})
        written = ["|".join(order) if isinstance(order, list) else order for order in orders.values()]
        named = [order.partition("|")[0].removeprefix("impl:") for order in written]
        named += ["layer 1 is off"] if content.get("use_flaggems") == "0" else []
        named += content.get("flagos_whitelist", [])
        is_recording = "SGLANG_FL_ATEN_CALLS" in settings
        self.started.append(
            "ATen ops" if is_recording else ",".join(named) or settings.get("SGLANG_FL_PER_OP", "present")
        )
        if self.fails and self.fails in named:
            raise EngineEndedError("the engine ended with code -11")
        if "SGLANG_FL_KEEP_CALLS" in settings:
            self.keep(Path(settings["SGLANG_FL_KEEP_CALLS"]))
        if is_recording:
            self.keep_aten(Path(settings["SGLANG_FL_ATEN_CALLS"]))
        if "SGLANG_FLAGGEMS_LOG_PATH" in settings:
            ran = [name.removesuffix(".default") for name in named if name in self.aten_ran]
            lines = [f"[DEBUG] toy.{name}: GEMS X {name}\n" for name in ran]
            Path(settings["SGLANG_FLAGGEMS_LOG_PATH"]).write_text("".join(lines))
        if "SGLANG_FL_DISPATCH_LOG" in settings:
            ran = "native" if self.runs_other else "), (".join(named)
            lines = [f"[OOT-DISPATCH] {layer} → x({ran})\n" for layer in ("SiluAndMul", "RMSNorm")]
            Path(settings["SGLANG_FL_DISPATCH_LOG"]).write_text("".join(lines))
        speed = 1.0
        for name in named or ["present"]:
            speed *= self.speeds.get(name, 1.0)
        self.now += self.seconds
        yield SimpleNamespace(start_up=1.0, throughput=Throughput(speed, budget))

    def keep(self, folder: Path) -> None:
        keeper = KeptCalls(folder)
        given = {
            "silu_and_mul": ("SiluAndMul", (torch.ones(2, 4),)),
            "rms_norm": ("RMSNorm", (torch.ones(2, 4), torch.ones(4), 1e-6)),
        }
        for name in self.called:
            layer, arguments = given[name]
            op = OPS[name]
            impl = OpImpl(name, BackendKind.REFERENCE, "reference", op.target)
            keeper.wrap(op, impl, type(layer, (), {})(), op.reference)(*arguments)

    def keep_aten(self, folder: Path) -> None:
        ops = [AtenOp(name, name.partition(".")[0]) for name in ("neg", "mul.Tensor", "abs", "cos", "sin")]
        x = torch.ones(2, 4)
        with CallMode(ops, "cpu", CallFolder(folder)):
            x.neg(), x * x, x.abs(), x.cos()

    def measure_aten(self, runs: object, op: str, present: str, calls: list[Any], budget: Budget) -> Measured:
        self.measured.append(op)
        if not budget.left:
            raise OutOfTimeError("the minutes are over")
        if op not in ATEN_TIMES:
            return Measured(op, present, {"kernel": Judged("wrong", "by far")}, calls=len(calls))
        kernel = {"pytorch": 100.0, "kernel": ATEN_TIMES[op]}
        times = {name: [time * f for f in STEADY] for name, time in kernel.items()}
        timed = (Timed(calls[0].shapes, "clock", times),)
        return Measured(op, present, {"kernel": Judged("right")}, timed, "", len(calls))

    def measure(self, subject: Any, calls: list[Any], budget: Budget, is_cuda: bool) -> Measured:
        self.measured.append(subject.op)
        judged = {i: Judged("right") if i in TIMES else Judged("wrong", "by far") for i in subject.targets}
        times = {i: [TIMES[i] * f for f in STEADY] for i in judged if i in TIMES}
        return Measured(
            subject.op, subject.present, judged, (Timed("x 2x4", "clock", times),), "", len(calls)
        )


class Throughput:
    """Answers with the same few figures in turn."""

    def __init__(self, speed: float, budget: Budget) -> None:
        self.speed, self.budget, self.count = speed, budget, 0

    def __call__(self, load: Load) -> float:
        if not self.budget.left:
            raise OutOfTimeError("the minutes are over")
        self.count += 1
        return 100 * self.speed * STEADY[self.count % len(STEADY)]


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, install_vendor: Callable[..., str], tmp_path: Path) -> Machine:
    pretended = Machine()
    install_vendor("toy", impls=IMPLS)
    for module in (recording, trials):
        monkeypatch.setattr(module, "started", pretended.start)
    monkeypatch.setattr("sglang_fl.tune.budget.time", SimpleNamespace(monotonic=lambda: pretended.now))
    monkeypatch.setattr(procedure, "measure_op", pretended.measure)
    monkeypatch.setattr(AtenRuns, "measure", lambda runs, *given: pretended.measure_aten(runs, *given))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"vocab_size": 8, "max_position_embeddings": 64}')
    own = signal.getsignal(signal.SIGTERM)
    yield pretended
    signal.signal(signal.SIGTERM, own)


def tune(*words: str, code: int = 0) -> str:
    configure.cache_clear()
    done = CliRunner().invoke(app, ["tune", "--model", "model", *words])
    assert done.exit_code == code, f"{done.output}\n{done.exception!r}"
    return done.output


def written(path: str = "sglang-fl-tuned.yaml") -> dict[str, Any]:
    return yaml.safe_load(Path(path).read_text()) or {}

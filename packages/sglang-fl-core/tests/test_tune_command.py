"""``sglang-fl tune`` around its engines, which are pretended: the file, what is kept, what is refused."""

import contextlib
import json
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from sglang_fl._version import __version__
from sglang_fl.aten import plan_layer_1
from sglang_fl.aten.recorded_calls import CallMode
from sglang_fl.cli import app
from sglang_fl.dispatch.kept_calls import CallFolder, KeptCalls
from sglang_fl.ops import OPS
from sglang_fl.startup import configure
from sglang_fl.tune import command, machine, procedure, recording, trials
from sglang_fl.tune.aten_runs import AtenRuns
from sglang_fl.tune.budget import Budget, OutOfTimeError
from sglang_fl.tune.decide import Judged, Measured, Timed
from sglang_fl.tune.engines import EngineEndedError, Launch, Load
from sglang_fl.vendor import AtenChoice, AtenOp, BackendKind, OpImpl

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
    """

    def __init__(self) -> None:
        self.speeds = dict(SPEEDS)
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


def test_the_fast_exact_kernel_is_chosen_and_the_file_says_why(pretended: Machine):
    output = tune("--kernels-only", "--device", "cpu")
    assert written() == {"op_backends": {"silu_and_mul": "impl:vendor.toy.fast|sglang"}}
    text = Path("sglang-fl-tuned.yaml").read_text()
    told = " ".join(text.replace("#", " ").split())
    assert "# model: model" in text
    assert "# chip: " in text
    assert f"sglang-fl-core {__version__}" in told
    assert "In the engine this choice has decode 1.5 ± " in told
    assert re.search(r"10 ± \S+ times the speed of vendor\.toy; vendor\.toy\.wrong: wrong: by far;", told)
    assert "rms_norm on vendor.toy: no other exact kernel is faster than vendor.toy" in told
    assert "vendor.toy.wrong: wrong: by far" in output
    assert pretended.started.count("present") == 4  # and the control: twice in each of two rounds
    assert pretended.started.count("vendor.toy.fast") == 2


def test_the_file_serves(pretended: Machine, monkeypatch: pytest.MonkeyPatch):
    tune("--kernels-only")
    monkeypatch.setenv("SGLANG_FL_CONFIG", "sglang-fl-tuned.yaml")
    configure.cache_clear()
    found = configure().resolutions["silu_and_mul"]
    assert [impl.id for impl in found.candidates] == ["vendor.toy.fast"]
    assert found.then_sglang


def test_what_the_engine_does_not_confirm_stays_as_it_is(pretended: Machine):
    pretended.speeds["vendor.toy.fast"] = 1.0
    output = tune("--kernels-only")
    assert written() == {}
    assert "The engine confirms nothing that is faster: all stays as it is." in output
    text = " ".join(Path("sglang-fl-tuned.yaml").read_text().replace("#", " ").split())
    proposed = (
        r"vendor\.toy\.fast was proposed \(10 ± \S+ times the speed of vendor\.toy\), and the engine did"
    )
    assert re.search(proposed, text)


def test_a_file_that_changes_nothing_serves_too(pretended: Machine, monkeypatch: pytest.MonkeyPatch):
    pretended.speeds["vendor.toy.fast"] = 1.0
    tune("--kernels-only")
    monkeypatch.setenv("SGLANG_FL_CONFIG", "sglang-fl-tuned.yaml")
    configure.cache_clear()
    assert configure().settings.per_op == {}


def test_sglangs_own_path_is_tried_op_by_op_and_chosen_where_it_is_faster(pretended: Machine):
    pretended.speeds["sglang"] = 1.3
    tune("--rounds", "1", "--op", "rms_norm")
    assert written() == {"op_backends": {"rms_norm": "sglang"}}
    assert pretended.started[1:].count("sglang") == 1


def test_an_engine_that_did_not_run_what_it_should_confirms_nothing(pretended: Machine):
    pretended.runs_other = True
    output = tune("--kernels-only")
    assert written() == {}
    assert "silu_and_mul did not run on vendor.toy.fast" in output


def test_an_engine_that_a_kernel_ends_confirms_nothing(pretended: Machine):
    pretended.fails = "vendor.toy.fast"
    assert "not measured: engine silu_and_mul=vendor.toy.fast: the engine ended with code -11" in tune(
        "--kernels-only"
    )
    assert written() == {}


def test_what_was_measured_is_not_measured_again(pretended: Machine):
    tune("--kernels-only")
    started = len(pretended.started)
    tune("--kernels-only", "--force")
    assert (len(pretended.started), len(pretended.measured)) == (started, 2)
    tune("--kernels-only", "--force", "--fresh")
    assert len(pretended.started) == 2 * started


def test_engines_of_two_runs_are_not_compared(pretended: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(procedure, "BESIDE_START", 9.0)
    minutes = ("--rounds", "1", "--op", "silu_and_mul")
    tune(*minutes, "--minutes", "1")
    few = len(pretended.started)
    pretended.speeds["present"] = 2.0  # the host has less to do meanwhile
    output = tune(*minutes, "--minutes", "9", "--force", "--json", "report.json")
    assert sorted(pretended.started[few:]) == ["present", "present", "sglang", "vendor.toy.fast"]
    found = json.loads(Path("report.json").read_text())["engines"]
    assert found["silu_and_mul=vendor.toy.fast, beside present"]["decode"]["ratio"] == pytest.approx(0.75)
    assert "all stays as it is" in output
    tune(*minutes, "--minutes", "9", "--force")
    assert len(pretended.started) == few + 4


@pytest.mark.parametrize(("moment", "again"), [(1, 0), (2, 1), (3, 2), (4, 0), (6, 2)], ids=str)
def test_a_run_that_was_interrupted_goes_on_where_it_was(pretended: Machine, moment: int, again: int):
    pretended.ends_at = moment
    configure.cache_clear()
    done = CliRunner().invoke(app, ["tune", "--model", "model", "--kernels-only"])
    assert done.exit_code != 0
    assert not Path("sglang-fl-tuned.yaml").exists()
    pretended.ends_at = None
    tune("--kernels-only")
    assert len(pretended.started) == 7 + again  # a round of engines that was begun is measured anew
    assert written()["op_backends"]


def test_what_other_versions_have_measured_is_refused(pretended: Machine, monkeypatch: pytest.MonkeyPatch):
    tune("--kernels-only")
    monkeypatch.setattr(machine, "versions", lambda registry: {"sglang": "9.9"})
    output = tune("--kernels-only", "--force", code=2)
    assert "was measured with other versions:" in output
    assert "sglang 0.5.23 then, 9.9 now" in output
    assert "--fresh measures anew" in output
    tune("--kernels-only", "--force", "--fresh")


def test_another_launch_line_is_another_run(pretended: Machine):
    tune("--kernels-only", "--dtype", "float32")
    started = len(pretended.started)
    tune("--kernels-only", "--force", "--dtype", "bfloat16")
    assert len(pretended.started) == 2 * started


def test_a_wrong_kernel_that_runs_at_present_is_code_1(pretended: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sglang_fl.tune.decide.RIGHT", "right")
    monkeypatch.delitem(TIMES, "vendor.toy")
    tune("--kernels-only", code=1)
    assert written() == {}


def test_a_model_that_calls_nothing_is_code_3(pretended: Machine):
    pretended.called = []
    output = tune("--kernels-only", "--json", "report.json", code=3)
    assert "Of these no call of the model was recorded: " in output
    found = json.loads(Path("report.json").read_text())
    assert found["ops"] == []
    assert "rms_norm" in found["not_called"]
    assert written() == {}


def test_ops_are_measured_where_the_minutes_do_not_suffice_for_engines(
    pretended: Machine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(procedure, "BESIDE_START", 1000.0)
    output = tune("--kernels-only", "--minutes", "1", code=3)
    assert "silu_and_mul" in pretended.measured
    assert "No engine could be measured: all stays as it is." in output
    assert "times the speed of vendor.toy" in " ".join(Path("sglang-fl-tuned.yaml").read_text().split())


def test_minutes_that_do_not_suffice_are_kept_and_what_is_left_out_is_named(
    pretended: Machine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(procedure, "BESIDE_START", 1000.0)
    monkeypatch.setattr(procedure, "MOST_LEFT", 1.0)
    output = tune("--kernels-only", "--minutes", "1", code=3)
    assert "not measured: silu_and_mul: the minutes that the engines leave were over" in output
    assert "Nothing was measured: all stays as it is." in output
    assert pretended.measured == []
    assert "not measured: rms_norm:" in " ".join(Path("sglang-fl-tuned.yaml").read_text().split())


def test_a_choice_of_several_parts_leaves_time_to_measure_it_as_a_whole(
    pretended: Machine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(procedure, "BESIDE_START", 9.0)
    output = tune("--rounds", "1", "--minutes", "1", "--op", "silu_and_mul")
    assert "not measured: engine silu_and_mul=sglang: the minutes do not suffice" in output
    assert "not measured: engine whole" not in output


def test_engines_for_which_there_is_no_time_are_named(pretended: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(procedure, "BESIDE_START", 8.0)
    output = tune("--rounds", "2", "--minutes", "1", "--op", "silu_and_mul")
    assert "not measured: engine silu_and_mul=sglang: the minutes do not suffice" in output


def test_a_file_that_exists_is_kept(pretended: Machine):
    Path("mine.yaml").write_text("prefer: vendor\n")
    output = tune("--out", "mine.yaml", code=2)
    assert "--out 'mine.yaml': it exists. Name another file, or overwrite it by --force." in output
    assert Path("mine.yaml").read_text() == "prefer: vendor\n"
    assert pretended.started == []


@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        (("--out", "no/such/file"), {}, "--out 'no/such/file': there is no folder 'no/such'"),
        (("--op", "rms_nrom"), {}, "--op 'rms_nrom': there is no such op."),
        (("--op", "layer_norm"), {}, "vendor toy has no implementation of it that is available here"),
        ((), {"SGLANG_FL_PER_OP": "rms_norm=reference"}, "it stands above the file that tune writes"),
        ((), {"SGLANG_FL_OOT_BLACKLIST": "rms_norm"}, "it leaves layers to SGLang"),
        ((), {"SGLANG_FL_OOT_ENABLED": "0"}, "layer 2 is off, there is nothing to choose"),
        ((), {"SGLANG_FL_PLATFORM": "cpu"}, "vendor cpu has no implementation that is available here"),
    ],
)
def test_what_cannot_be_tuned_is_refused(pretended: Machine, monkeypatch, words, settings, said):
    for name, text in settings.items():
        monkeypatch.setenv(name, text)
    assert said in " ".join(tune(*words, code=2).split())
    assert pretended.started == []


def test_no_such_model_is_refused(pretended: Machine):
    done = CliRunner().invoke(app, ["tune", "--model", "none"])
    assert done.exit_code == 2
    assert "--model 'none': there is no such folder." in done.output


def test_the_file_takes_the_place_of_the_users_own(pretended: Machine, monkeypatch: pytest.MonkeyPatch):
    Path("mine.yaml").write_text(
        "prefer: vendor\nstrict: true\n"
        "op_backends:\n  rms_norm: [vendor, reference]\n  silu_and_mul: vendor\n"
    )
    monkeypatch.setenv("SGLANG_FL_CONFIG", "mine.yaml")
    tune("--kernels-only")
    assert written() == {
        "prefer": "vendor",
        "strict": "true",
        "op_backends": {
            "rms_norm": ["vendor", "reference"],
            "silu_and_mul": "impl:vendor.toy.fast|sglang",
        },
    }


def test_a_vendor_package_gets_its_entries(pretended: Machine):
    output = tune("--rounds", "1", "--as-package-data")
    assert 'OpChoice(\n        "rms_norm",\n        "vendor.toy",\n        is_default=True,\n' in output
    assert "of SGLang's own in a served model" in " ".join(output.replace('"', "").split())
    assert (
        "# quarantine, once a reproduction is written: silu_and_mul vendor.toy.wrong wrong: by far" in output
    )
    begin, end = output.index("choices = ("), output.index("# quarantine")
    entries = eval(output[begin:end].removeprefix("choices = "), {"OpChoice": lambda *a, **k: (a, k)})
    assert [a for a, k in entries] == [("rms_norm", "vendor.toy"), ("silu_and_mul", "vendor.toy.fast")]


def test_the_result_as_json(pretended: Machine, fits: Callable[[str, object], None]):
    tune("--kernels-only", "--json", "result.json")
    found = json.loads(Path("result.json").read_text(), parse_constant=pytest.fail)
    fits("tune", found)
    assert found["op_backends"] == {"silu_and_mul": "impl:vendor.toy.fast|sglang"}
    assert found["engines"]["silu_and_mul=vendor.toy.fast, beside present"]["decode"][
        "ratio"
    ] == pytest.approx(1.5)
    assert {row["op"]: row["chosen"] for row in found["ops"]} == {
        "rms_norm": "vendor.toy",
        "silu_and_mul": "vendor.toy.fast",
    }


def test_layer_1_is_left_off_where_the_engine_is_faster_without_it(
    pretended: Machine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(command, "_has_layer_1", lambda *given: True)
    pretended.speeds["layer 1 is off"] = 1.3
    tune("--rounds", "1", "--op", "rms_norm")
    assert written() == {"use_flaggems": "0"}
    assert "engine use_flaggems=0, beside present: decode 1.3 ±" in Path("sglang-fl-tuned.yaml").read_text()


def test_an_op_of_sglangs_gets_an_engine_of_its_own(pretended: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_PREFER", "sglang")
    tune("--rounds", "1", "--op", "silu_and_mul")
    assert written() == {"op_backends": {"silu_and_mul": "impl:vendor.toy.fast|sglang"}}
    text = " ".join(Path("sglang-fl-tuned.yaml").read_text().replace("#", " ").split())
    assert "the fastest exact kernel of 2; in the engine vendor.toy.fast has decode 1.5 ±" in text


@pytest.fixture
def aten(pretended: Machine, install: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The machine with a vendor ``chip`` of ATen kernels alone, and ``both`` of the other ops, too."""
    install("chip", ATEN_VENDOR.replace('"toy"', '"chip"'))
    ops = IMPLS.replace("vendor.toy", "vendor.both")
    install("both", ATEN_VENDOR.replace('"toy"', '"both"').replace("impls=()", f"impls=({ops})"))
    monkeypatch.setenv("SGLANG_FL_PLATFORM", "chip")
    return pretended


LISTED = ["aten::exp.default", "aten::neg.default", "aten::mul.Tensor"]


def test_aten_ops_that_are_exact_and_faster_are_listed_and_a_slow_one_is_given_back(
    aten: Machine, fits: Callable[[str, object], None]
):
    output = tune("--kernels-only", "--json", "result.json", "--as-package-data")
    assert written() == {"use_flaggems": "1", "flagos_whitelist": LISTED}
    assert aten.measured == [
        "aten::neg.default",
        "aten::mul.Tensor",
        "aten::abs.default",
        "aten::cos.default",
    ]
    assert aten.started == ["ATen ops", *aten.started[1:]]
    assert sorted(set(aten.started[1:])) == [",".join(LISTED), "present"]
    told = " ".join(Path("sglang-fl-tuned.yaml").read_text().replace("#", " ").split())
    assert re.search(
        r"5 ± \S+ times the speed of PyTorch's \(recorded calls: 1\) - \"aten::neg.default\"", told
    )
    assert "These are PyTorch's again: aten::abs.default on pytorch: 0.333 ±" in told
    assert "aten::cos.default on pytorch: the kernel is not exact; kernel: wrong: by far" in told
    assert "engine ATen ops +neg.default +mul.Tensor -abs.default, beside present: decode 1.2 ±" in told
    found = json.loads(Path("result.json").read_text())
    fits("tune", found)
    assert {row["op"]: (row["present"], row["chosen"]) for row in found["ops"]} == {
        "aten::neg.default": ("pytorch", "kernel"),
        "aten::mul.Tensor": ("pytorch", "kernel"),
        "aten::abs.default": ("kernel", "pytorch"),
        "aten::cos.default": ("pytorch", "pytorch"),
    }
    assert (found["layer_1"], found["flagos_whitelist"]) == ("listed", LISTED)
    entries = output[output.index("aten_choices = (") : output.index("# quarantine")]
    made = eval(entries.removeprefix("aten_choices = "), {"AtenChoice": AtenChoice})
    assert {choice.names: choice.is_replaced for choice in made} == {
        ("neg.default",): True,
        ("mul.Tensor",): True,
        ("abs.default",): False,
    }
    assert "once a reproduction is written: aten::cos.default kernel wrong: by far" in output


def test_ops_and_aten_ops_are_chosen_together(aten: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_PLATFORM", "both")
    monkeypatch.setitem(TIMES, "vendor.both", 100.0)
    monkeypatch.setitem(TIMES, "vendor.both.fast", 10.0)
    aten.speeds["vendor.both.fast"] = 1.5
    tune("--kernels-only")
    assert written() == {
        "use_flaggems": "1",
        "flagos_whitelist": LISTED,
        "op_backends": {"silu_and_mul": "impl:vendor.both.fast|sglang"},
    }
    told = " ".join(Path("sglang-fl-tuned.yaml").read_text().replace("#", " ").split())
    assert "In the engine this choice has decode 1.8 ±" in told
    assert list(Path("sglang-fl-tune").glob("*/calls")) == []  # all is measured


def test_a_list_of_aten_ops_serves(aten: Machine, monkeypatch: pytest.MonkeyPatch):
    tune("--kernels-only")
    monkeypatch.setenv("SGLANG_FL_CONFIG", "sglang-fl-tuned.yaml")
    configure.cache_clear()
    plan = plan_layer_1(configure())
    assert [op.exact for op in plan.replaced] == [
        "aten::neg.default",
        "aten::mul.Tensor",
        "aten::exp.default",
    ]


def test_a_list_that_the_engine_does_not_confirm_is_not_written(aten: Machine):
    aten.speeds["aten::neg.default"] = 1.0
    tune("--kernels-only")
    assert written() == {}
    told = " ".join(Path("sglang-fl-tuned.yaml").read_text().replace("#", " ").split())
    assert "kernel was proposed (5 ±" in told
    assert "and the engine did not confirm it" in told


def test_pytorchs_own_for_all_is_tried_beside_the_list(aten: Machine):
    aten.speeds["layer 1 is off"] = 1.4
    tune("--rounds", "1")
    assert written() == {"use_flaggems": "0"}


def test_aten_ops_that_no_engine_was_seen_to_run_are_not_written(aten: Machine):
    aten.aten_ran = {"aten::neg.default"}
    tune("--kernels-only")
    assert written()["flagos_whitelist"] == ["aten::exp.default", "aten::neg.default"]
    told = " ".join(Path("sglang-fl-tuned.yaml").read_text().replace("#", " ").split())
    assert re.search(
        r"aten::mul.Tensor on pytorch: kernel was proposed \(2 ± \S+ .* the engine never called it", told
    )
    aten.aten_ran = set()
    output = tune("--kernels-only", "--force", "--fresh")
    assert written() == {}
    assert "none of aten::neg.default, aten::mul.Tensor ran on the vendor's" in " ".join(output.split())


def test_single_aten_ops_can_be_named_and_what_was_measured_is_kept(aten: Machine):
    tune("--kernels-only", "--op", "mul.Tensor", code=2)
    tune("--kernels-only", "--op", "aten::neg")
    assert aten.measured == ["aten::neg.default"]
    assert written()["flagos_whitelist"] == ["aten::abs.default", "aten::exp.default", "aten::neg.default"]
    started = len(aten.started)
    tune("--kernels-only", "--op", "aten::neg", "--force")
    assert (len(aten.started), aten.measured) == (started, ["aten::neg.default"])


@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        (("--op", "aten::negg"), {}, "replace no ATen op 'aten::negg'. Nearest: aten::neg."),
        (("--op", "aten::sin"), {}, "--op 'aten::sin': it is in quarantine here, or your black list"),
        (("--op", "aten::neg"), {"USE_FLAGGEMS": "0"}, "it stands above the file that tune writes"),
        (("--op", "aten::neg"), {"SGLANG_FL_PLATFORM": "toy"}, "vendor toy has no ATen kernels (layer 1)"),
    ],
)
def test_aten_ops_that_cannot_be_tuned_are_refused(aten: Machine, monkeypatch, words, settings, said):
    for name, text in settings.items():
        monkeypatch.setenv(name, text)
    assert said in " ".join(tune(*words, code=2).split())


def test_aten_ops_against_which_a_setting_stands_are_named(aten: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_FLAGOS_WHITELIST", "neg")
    said = "SGLANG_FL_FLAGOS_WHITELIST='neg': it stands above the file that tune writes"
    assert f"nothing to choose. ATen ops: {said}" in " ".join(tune(code=2).split())
    monkeypatch.setenv("SGLANG_FL_PLATFORM", "both")
    monkeypatch.setitem(TIMES, "vendor.both", 100.0)
    assert f"tune: no ATen op is measured: {said}" in " ".join(tune("--kernels-only").split())
    assert (
        "# ATen ops: none is measured: SGLANG_FL_FLAGOS_WHITELIST" in Path("sglang-fl-tuned.yaml").read_text()
    )
    assert "ATen op" not in " ".join(tune("--kernels-only", "--op", "rms_norm", "--force").split())


def test_aten_ops_for_which_the_minutes_do_not_suffice_are_named(aten: Machine, monkeypatch):
    monkeypatch.setattr(procedure, "BESIDE_START", 1000.0)
    monkeypatch.setattr(procedure, "MOST_LEFT", 1.0)
    output = " ".join(tune("--kernels-only", "--minutes", "1", code=3).split())
    names = "aten::neg.default, aten::mul.Tensor, aten::abs.default, aten::cos.default"
    assert f"not measured: {names}: the minutes that the engines leave were over" in output
    assert "aten::neg.default on pytorch: not measured: the minutes" in " ".join(
        Path("sglang-fl-tuned.yaml").read_text().replace("#", " ").split()
    )


def test_the_users_black_list_of_aten_ops_is_kept_to(aten: Machine, monkeypatch: pytest.MonkeyPatch):
    Path("mine.yaml").write_text("flagos_blacklist: [mul, exp]\n")
    monkeypatch.setenv("SGLANG_FL_CONFIG", "mine.yaml")
    tune("--kernels-only")
    assert written() == {"use_flaggems": "1", "flagos_whitelist": ["aten::neg.default"]}

"""``sglang-fl tune``: the choice of ops, its file, and what is said where nothing can be chosen."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tuned_machine
from sglang_fl._version import __version__
from sglang_fl.cli import app
from sglang_fl.startup import configure
from sglang_fl.tune import command, machine, procedure
from tuned_machine import TIMES, Machine, tune, written

#: A fixture.
pretended = tuned_machine.pretended


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


def test_engines_of_two_runs_are_not_compared(pretended: Machine):
    pretended.seconds = 10.0
    minutes = ("--rounds", "1", "--op", "silu_and_mul")
    tune(*minutes, "--minutes", "1")
    few = len(pretended.started)
    pretended.speeds["present"] = 2.0  # the host has less to do meanwhile
    output = tune(*minutes, "--minutes", "9", "--force", "--json-file", "report.json")
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


def test_another_model_in_the_same_folder_and_another_chip_are_another_run(
    pretended: Machine, monkeypatch: pytest.MonkeyPatch
):
    tune("--kernels-only")
    once = len(pretended.started)
    Path("model", "config.json").write_text('{"vocab_size": 9, "max_position_embeddings": 64}')
    tune("--kernels-only", "--force")
    assert len(pretended.started) == 2 * once
    monkeypatch.setattr(machine, "chip_name", lambda registry, seconds: "another chip")
    tune("--kernels-only", "--force")
    assert len(pretended.started) == 3 * once
    Path("model", "model.safetensors").write_bytes(b"other weights")
    tune("--kernels-only", "--force")
    assert len(pretended.started) == 4 * once


def state_file() -> Path:
    (path,) = Path("sglang-fl-tune").glob("*/state.json")
    return path


@pytest.mark.parametrize(
    "text",
    [
        '{"ops"',
        "[]",
        "null",
        '{"versions": []}',
        '{"ops": {"rms_norm": {}}}',
        '{"ops": []}',
        '{"starts": {"present": [{"decode": "fast"}]}}',
        '{"recorded": {"rms_norm": {"layers": []}}}',
        '{"ran": 3}',
    ],
)
def test_a_state_that_was_spoilt_is_refused_by_name(text: str, pretended: Machine):
    tune("--kernels-only")
    own = json.loads(state_file().read_text())
    state_file().write_text(text.replace("{", f'{{"versions": {json.dumps(own["versions"])}, ', 1))
    output = " ".join(tune("--kernels-only", "--force", code=2).split())
    assert "state.json: it cannot be read. --fresh measures anew." in output
    tune("--kernels-only", "--force", "--fresh")


def test_two_runs_do_not_measure_the_same_at_once(pretended: Machine, monkeypatch: pytest.MonkeyPatch):
    own, outputs = pretended.measure, []

    def measure(*given: Any) -> Any:
        if not outputs:
            outputs.append(tune("--kernels-only", "--force", code=2))
            outputs.append(tune("--kernels-only", "--force", "--fresh", code=2))
        return own(*given)

    monkeypatch.setattr(procedure, "measure_op", measure)
    tune("--kernels-only")
    for output in outputs:
        assert "another sglang-fl tune is measuring this" in " ".join(output.split())
    assert written()["op_backends"]


def test_a_state_that_cannot_be_kept_is_told_by_its_name(pretended: Machine, monkeypatch: pytest.MonkeyPatch):
    own = pretended.measure

    def measure(*given: Any) -> Any:
        shutil.rmtree("sglang-fl-tune")
        return own(*given)

    monkeypatch.setattr(procedure, "measure_op", measure)
    output = " ".join(tune("--kernels-only", code=2).split())
    assert "--folder 'sglang-fl-tune': No such file or directory: sglang-fl-tune/" in output


def test_calls_that_were_removed_are_recorded_again(pretended: Machine, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*given: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(procedure, "measure_op", interrupted)
        configure.cache_clear()
        CliRunner().invoke(app, ["tune", "--model", "model", "--kernels-only"])
    shutil.rmtree(next(Path("sglang-fl-tune").glob("*/calls")))
    tune("--kernels-only", "--json-file", "report.json")
    assert written()["op_backends"]
    assert [row["calls"] for row in json.loads(Path("report.json").read_text())["ops"]] == [1, 1]


def test_a_wrong_kernel_that_runs_at_present_is_code_1(pretended: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sglang_fl.tune.decide.RIGHT", "right")
    monkeypatch.delitem(TIMES, "vendor.toy")
    tune("--kernels-only", code=1)
    assert written() == {}


def test_a_model_that_calls_nothing_is_code_3(pretended: Machine):
    pretended.called = []
    output = tune("--kernels-only", "--json-file", "report.json", code=3)
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


@pytest.mark.parametrize(
    ("rounds", "engines", "are_started"),
    [
        (1, 6.9, 3),  # and three are kept for the choices of several together
        (1, 7.0, 4),
        (2, 13.9, 6),
        (2, 14.0, 8),
    ],
)
def test_the_time_that_engines_take_says_how_many_are_started(
    pretended: Machine, rounds: int, engines: float, are_started: int
):
    pretended.seconds = 10.0
    minutes = str((1 + engines) * pretended.seconds / 60)  # one engine records
    output = tune("--op", "silu_and_mul", "--rounds", str(rounds), "--minutes", minutes)
    assert len(pretended.started) == 1 + are_started
    named = "not measured: engine silu_and_mul=sglang: the minutes do not suffice" in output
    assert named == (are_started == 3 * rounds)
    assert "not measured: engine whole" not in output


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


@pytest.mark.parametrize(
    ("words", "out"),
    [((), "sglang-fl-tuned.yaml"), (("--out", "mine.yaml", "--force"), "mine.yaml")],
    ids=["beside", "over"],
)
def test_the_file_takes_the_place_of_the_users_own(
    pretended: Machine, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], out: str
):
    Path("mine.yaml").write_text(
        "prefer: vendor\nstrict: true\n"
        "op_backends:\n  rms_norm: [vendor, reference]\n  silu_and_mul: vendor\n"
    )
    monkeypatch.setenv("SGLANG_FL_CONFIG", "mine.yaml")
    tune("--kernels-only", *words)
    assert written(out) == {
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
    words = ("--model", "model", "--kernels-only", "--json", "--json-file", "result.json")
    done = CliRunner().invoke(app, ["tune", *words])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert Path("result.json").read_text() == done.stdout
    fits("tune", found)
    assert found["op_backends"] == {"silu_and_mul": "impl:vendor.toy.fast|sglang"}
    assert found["engines"]["silu_and_mul=vendor.toy.fast, beside present"]["decode"][
        "ratio"
    ] == pytest.approx(1.5)
    assert {row["op"]: row["chosen"] for row in found["ops"]} == {
        "rms_norm": "vendor.toy",
        "silu_and_mul": "vendor.toy.fast",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--json-file", "no/such.json"), "--json-file 'no/such.json': No such file"),
        (("--json-file", "model"), "--json-file 'model': it is a folder"),
        (("--out", "model", "--force"), "--out 'model': it is a folder"),
        (("--json-file", "./sglang-fl-tuned.yaml"), "--out and --json-file name the same file"),
        (
            ("--json-file", "mine.yaml"),
            "--json-file 'mine.yaml' and SGLANG_FL_CONFIG='mine.yaml' are the same file",
        ),
        (
            ("--out", "ran.log", "--force"),
            "--out 'ran.log' and SGLANG_FL_DISPATCH_LOG='ran.log' are the same file",
        ),
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(
    pretended: Machine, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
):
    Path("mine.yaml").write_text("strict: 1\n")
    monkeypatch.setenv("SGLANG_FL_CONFIG", "mine.yaml")
    monkeypatch.setenv("SGLANG_FL_DISPATCH_LOG", "ran.log")
    assert message in " ".join(tune(*words, code=2).split())
    assert not pretended.started
    assert Path("mine.yaml").read_text() == "strict: 1\n"


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

"""``sglang-fl bisect`` on the real engine: each sort of fault is found by name, right kernels are not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from demo.server import group_is_alive
from tests.engine.models import BY_NAME, make_model
from tests.engine.planted import FAULTS, Bisected, assert_found, bisect_planted
from tests.programs import ROOT, finish, processes_with, server_for
from tests.schemas import assert_fits

pytestmark = pytest.mark.timeout(700)

BISECT = (sys.executable, str(Path(sys.executable).with_name("sglang-fl")), "bisect")
CPU = ("--device", "cpu", "--attention-backend", "torch_native")


@pytest.fixture(scope="module")
def bisected(tiny_model: Path, environment_of, tmp_path_factory) -> Bisected:
    return bisect_planted(FAULTS, tiny_model, tmp_path_factory.mktemp("bisect"), environment_of, *CPU)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_by_its_name_and_nothing_else_is(bisected: Bisected, fault: str):
    assert_found(fault, bisected[0][fault])
    assert_fits("bisect", bisected[0][fault])


@pytest.fixture(scope="module")
def bisected_on_two_ranks(environment_of, tmp_path_factory) -> Bisected:
    def environment(settings: dict[str, str]) -> dict[str, str]:
        return environment_of({"SGLANG_CPU_OMP_THREADS_BIND": "0|1", **settings})

    folder = tmp_path_factory.mktemp("ranks")
    make_model(BY_NAME["Qwen2"], folder / "model")
    return bisect_planted(RANKS, folder / "model", folder, environment, *CPU, "--tp", "2")


#: Faults on every rank, and on one alone.
RANKS = {"fused": "", "fused on rank 1": "1", "aten on rank 1": "1"}


@pytest.mark.parametrize("fault", RANKS)
def test_a_fault_of_one_rank_is_found_by_its_name_and_its_rank(bisected_on_two_ranks: Bisected, fault: str):
    verdict = bisected_on_two_ranks[0][fault]
    assert_found(fault, verdict)
    assert {culprit["ranks"] for culprit in verdict["culprits"]} <= {RANKS[fault]}


def test_a_verdict_says_where_and_how_far_and_what_to_do(bisected: Bisected):
    (culprit,) = bisected[0]["fused"]["culprits"]
    assert culprit["where"] == "model.layers.0.mlp.act_fn"
    assert culprit["implementation"] == "flagos(flagos) faulty_vendor:silu_and_mul"
    assert culprit["exclude"] == "SGLANG_FL_PER_OP=silu_and_mul=reference"
    assert culprit["dtype"] == "float32"
    assert "units of float32 from float64" in culprit["what"]


def test_a_wrong_aten_call_is_told_with_the_layer_that_made_it(bisected: Bisected):
    (culprit,) = bisected[0]["aten"]["culprits"]
    assert culprit["where"].startswith("model.layers.0.")


def test_the_steps_of_a_verdict_lead_to_its_culprit(bisected: Bisected):
    steps = bisected[0]["fused"]["steps"]
    assert [step["asks"] for step in steps[:6]] == [
        *("twice", "attention", "off", "references", "planted", "everything")
    ]
    search = [step for step in steps if step["asks"] in ("everything", "some")]
    guilty = [step for step in search if not step["agrees"]]
    assert all("silu_and_mul" in step["on"] and step["distance"] > 0.01 for step in guilty)
    assert [len(step["on"]) for step in guilty] == sorted({len(step["on"]) for step in guilty}, reverse=True)
    assert guilty[-1]["on"] == ["silu_and_mul"]
    assert all("silu_and_mul" not in step["on"] for step in search if step["agrees"])
    assert sum(step["seconds"] for step in steps) <= bisected[0]["fused"]["numbers"]["seconds"] + 0.1


def test_the_page_of_a_report_shows_its_steps(bisected: Bisected):
    page = (bisected[1] / "reports" / "verdict.html").read_text()
    assert "<h2>Guilty: silu_and_mul</h2>" in page
    assert page.count('<li class="step') == len(bisected[0]["fused"]["steps"])


def test_one_culprit_of_many_takes_few_passes(bisected: Bisected):
    # 8 before the search, two for each of the five halvings of 23 units, one to watch; three for the rest.
    assert bisected[0]["aten"]["numbers"]["passes"] <= 22


def test_the_script_of_a_report_repeats_the_wrong_call_without_sglang(bisected: Bisected, environment_of):
    _, folder = bisected
    script = folder / "reports" / "reproduce-0.py"
    assert len(script.read_text().splitlines()) <= 20
    planted = folder / "planted" / "fused"
    planted.touch()
    settings = {"PYTHONPATH": str(folder / "site"), "FAULTS_FOLDER": str(folder / "planted")}
    code = f"import sys, runpy; runpy.run_path({str(script)!r}); print('sglang' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment_of(settings), capture_output=True, text=True, check=True
    )
    planted.unlink()
    said, imported = done.stdout.splitlines()
    assert said.startswith("silu_and_mul in model.layers.0.mlp.act_fn: result 0: ")
    assert imported == "False"


def test_no_process_is_left(bisected: Bisected, tiny_model: Path):
    assert processes_with(str(tiny_model)) == []


def test_ranks_that_die_while_they_are_asked_end_the_command(tiny_model, environment_of, tmp_path: Path):
    environment = environment_of({"PYTHONUNBUFFERED": "1"})
    words = ("--max-total-tokens", "2048", "--grammar-backend", "none", "--folder", str(tmp_path / "out"))
    command = [*BISECT, "--model", str(tiny_model), *CPU, *words]
    with (tmp_path / "output.log").open("wb") as output:
        program = server_for(environment).start(command, output.fileno(), environment, ROOT)
    deadline = time.monotonic() + 200
    while "the same batch twice" not in (tmp_path / "output.log").read_text(errors="replace"):
        assert time.monotonic() < deadline, (tmp_path / "output.log").read_text()
        time.sleep(0.1)
    for child in psutil.Process(program.pid).children(recursive=True):
        child.kill()
    assert program.wait(60) == 2, (tmp_path / "output.log").read_text()
    assert "SGLang ended with code 1: " in (tmp_path / "output.log").read_text()
    assert processes_with(str(tiny_model)) == []


@pytest.mark.parametrize("moment", ["starting the engine", "the same batch twice"])
def test_ctrl_c_leaves_no_process_and_is_no_verdict(moment: str, tiny_model, environment_of, tmp_path: Path):
    folder, environment = tmp_path / "report", environment_of({"PYTHONUNBUFFERED": "1"})
    words = ("--max-total-tokens", "2048", "--grammar-backend", "none", "--folder", str(folder))
    command = [*BISECT, "--model", str(tiny_model), *CPU, *words]
    with (tmp_path / "output.log").open("wb") as output:
        if moment == "starting the engine":
            process = subprocess.Popen(  # really started: signals find the processes that a user has
                command,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A shell that runs the tests in the background has them ignore it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        else:  # test_profile does so with an engine that is really started
            process = server_for(environment).start(command, output.fileno(), environment, ROOT)
    deadline = time.monotonic() + 200
    while moment not in (tmp_path / "output.log").read_text(errors="replace"):
        assert process.poll() is None, (tmp_path / "output.log").read_text()
        assert time.monotonic() < deadline, (tmp_path / "output.log").read_text()
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(60) == 130
    assert ends_within(30, process.pid)  # the tracker of shared memory ends by itself
    assert list(folder.glob("*/verdict.json")) == []


def ends_within(seconds: float, group: int) -> bool:
    """Wait until no process of a group is left."""
    deadline = time.monotonic() + seconds
    while group_is_alive(group) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not group_is_alive(group)


def test_a_set_up_that_is_broken_is_no_verdict(environment_of, tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["NoSuchModel"], "model_type": "qwen2"}')
    command = [*BISECT, "--model", str(model), "--folder", str(tmp_path / "out"), "--json", "--device", "cpu"]
    run = finish(command, environment_of({}), 200, server_for({}))
    assert run.code == 2, run.output[-3000:]
    assert '"set_up_broken"' in run.output


def test_a_rank_that_fails_ends_the_command_with_a_verdict_that_there_is_none(environment_of, tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    config = {"architectures": ["NoSuchModel"], "model_type": "qwen2", "vocab_size": 8}
    (model / "config.json").write_text(json.dumps(config))
    command = [*BISECT, "--model", str(model), "--folder", str(tmp_path / "out"), "--json", "--device", "cpu"]
    run = finish(command, environment_of({}), 200, server_for({}))
    assert run.code == 2, run.output[-3000:]
    (verdict,) = (tmp_path / "out").glob("*/verdict.json")
    summary = json.loads(verdict.read_text())["summary"]
    assert "SGLang ended with code 1: " in summary


def test_an_argument_that_sglang_refuses_is_told_by_its_words(tiny_model, environment_of, tmp_path: Path):
    words = ("--folder", str(tmp_path / "out"), "--html", "--json", "--no-such-argument")
    run = finish([*BISECT, "--model", str(tiny_model), *words], environment_of({}), 200, server_for({}))
    assert run.code == 2, run.output[-3000:]
    (verdict,) = (tmp_path / "out").glob("*/verdict.json")
    data = json.loads(verdict.read_text())
    assert_fits("bisect", data)
    assert data["summary"].startswith("SGLang ended with code 2: ")
    assert data["summary"].endswith("error: unrecognized arguments: --no-such-argument")
    assert "error: unrecognized arguments: --no-such-argument" in verdict.with_suffix(".html").read_text()


def test_a_model_that_is_not_there_is_refused_before_an_engine_starts(environment_of, tmp_path: Path):
    command = [*BISECT, "--model", str(tmp_path / "none"), "--folder", str(tmp_path / "out")]
    run = finish(command, environment_of({}), timeout=60)
    assert run.code == 2, run.output[-3000:]

"""``sglang-fl bisect`` on the real engine: each sort of fault is found by name, right kernels are not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.conftest import Run, finish, processes_with
from tests.engine.fake_vendor import install_vendor

pytestmark = pytest.mark.timeout(400)

HERE = Path(__file__).parent
FAULTS = (
    "nothing",
    "fused",
    "aten",
    "fused and aten",
    "pair",
    "past-its-row",
    "float32-integers",
    "nondeterministic",
)


@pytest.fixture(scope="module")
def bisected(tiny_model: Path, environment_of, tmp_path_factory) -> tuple[dict, Path]:
    """The verdict of each fault, from one start of the engine, and the folder of the reports."""
    folder = tmp_path_factory.mktemp("bisect")
    site = install_vendor(folder / "site", "faulty", (HERE / "faulty_vendor.py").read_text())
    planted = folder / "planted"
    planted.mkdir()
    settings = {"PYTHONPATH": str(site), "FAULTS_FOLDER": str(planted)}
    command = [
        sys.executable,
        str(HERE / "bisect_faults.py"),
        str(tiny_model),
        str(folder / "reports"),
        *FAULTS,
    ]
    run: Run = finish(command, environment_of(settings), timeout=380)
    assert run.code == 0, run.output[-5000:]
    return run.result, folder


def names(verdict: dict) -> set[str]:
    return {culprit["name"] for culprit in verdict["culprits"]}


def test_right_kernels_give_nothing(bisected):
    verdict = bisected[0]["nothing"]
    assert verdict["outcome"] == "nothing_found", verdict
    assert verdict["culprits"] == () or verdict["culprits"] == []


@pytest.mark.parametrize(
    ("fault", "guilty"),
    [
        ("fused", {"silu_and_mul"}),
        ("aten", {"aten::add.Tensor"}),
        ("fused and aten", {"silu_and_mul", "aten::add.Tensor"}),
        ("pair", {"rms_norm", "silu_and_mul"}),
        ("past-its-row", {"rotary_embedding"}),
        ("nondeterministic", {"silu_and_mul"}),
    ],
)
def test_each_fault_is_found_by_its_name_and_nothing_else_is(bisected, fault: str, guilty: set[str]):
    verdict = bisected[0][fault]
    assert verdict["outcome"] == "found", verdict
    assert names(verdict) == guilty


def test_integers_that_float32_cannot_count_are_found_although_the_model_has_none(bisected):
    verdict = bisected[0]["float32-integers"]
    assert verdict["outcome"] == "found", verdict
    assert names(verdict) <= {"aten::add.Tensor", "aten::sub.Tensor", "aten::mul.Tensor"}
    assert all("2^24" in culprit["what"] for culprit in verdict["culprits"]), verdict


def test_a_verdict_says_where_and_how_far_and_what_to_do(bisected):
    (culprit,) = bisected[0]["fused"]["culprits"]
    assert culprit["where"] == "model.layers.0.mlp.act_fn"
    assert culprit["implementation"] == "flagos(flagos) faulty_vendor:silu_and_mul"
    assert culprit["exclude"] == "SGLANG_FL_PER_OP=silu_and_mul=reference"
    assert culprit["dtype"] == "float32"
    assert "units of float32 from float64" in culprit["what"]


def test_one_culprit_of_many_takes_few_passes(bisected):
    # 8 before the search, two for each of the five halvings of 23 units, one to watch; three for the rest.
    assert bisected[0]["aten"]["numbers"]["passes"] <= 22


def test_the_script_of_a_report_repeats_the_wrong_call_without_sglang(bisected, environment_of):
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


def test_no_process_is_left(bisected, tiny_model: Path):
    assert processes_with(str(tiny_model)) == []


def test_a_set_up_that_is_broken_is_no_verdict(environment_of, tmp_path: Path):
    command = [str(Path(sys.executable).with_name("sglang-fl")), "bisect", "--model", str(tmp_path / "none")]
    run = finish([*command, "--folder", str(tmp_path / "out"), "--json"], environment_of({}), timeout=200)
    assert run.code == 2, run.output[-3000:]
    assert '"set_up_broken"' in run.output


def test_the_plan_is_the_five_manual_steps(environment_of):
    command = [
        str(Path(sys.executable).with_name("sglang-fl")),
        "bisect",
        "--plan",
        "--model",
        "M",
        "--tp",
        "2",
    ]
    run = finish(command, environment_of({}), timeout=60)
    lines = [line for line in run.output.splitlines() if not line.startswith("#")]
    assert len(lines) == 5
    assert all(line.endswith("python -m sglang.launch_server --model-path M --tp 2") for line in lines)
    assert json.dumps(lines[0]).startswith('"SGLANG_PLUGINS=__none__ ')

"""``sglang-fl bisect --plan``: the steps that can be done on this machine, numbered as in the docs."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sglang_fl.bisect.manual_steps import STEPS, markdown_table
from sglang_fl.cli import app
from sglang_fl.startup import configure

Install = Callable[..., str]

#: A chip that SGLang has a platform for, with a kernel and with ATen kernels.
CHIP = """
from sglang_fl.vendor import AtenOffer, BackendKind, OpImpl, Vendor

CHIP = Vendor(
    "toy", "npu", 1, "sglang_fl.registry.cpu:why_unavailable",
    impls=(OpImpl("silu_and_mul", BackendKind.VENDOR, "vendor.toy", "k:f"),),
    aten=AtenOffer(__name__ + ":ops", __name__ + ":kernels", ()),
)

def ops():
    return []
"""


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch) -> None:
    """A checkpoint's folder in the working directory."""
    (tmp_path / "a model").mkdir()
    (tmp_path / "a model" / "config.json").write_text('{"vocab_size": 8}')
    monkeypatch.chdir(tmp_path)


def plan(*words: str) -> list[str]:
    result = CliRunner().invoke(app, ["bisect", "--plan", "--model", "a model", *words])
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def commands(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("#")]


def test_plan_on_a_chip_has_all_steps(install: Install):
    install("toy", CHIP)
    lines = plan("--tp", "2", "--tokenizer-path", "a b")
    assert len(commands(lines)) == len(STEPS) == 7
    line = "python -m sglang.launch_server --model-path 'a model' --tp 2 --tokenizer-path 'a b'"
    assert all(command.endswith(line) for command in commands(lines))
    assert [line for line in lines if line.startswith("# Step ")] == [
        f"# Step {step.number}: {step.runs}." for step in STEPS
    ]
    assert "SGLANG_FL_PER_OP=silu_and_mul=vendor " in commands(lines)[4]


def test_plan_on_a_cpu_has_only_what_can_be_done_there(monkeypatch):
    lines = plan()
    assert len(commands(lines)) == 2
    assert not [command for command in commands(lines) if "__none__" in command or "flagos" in command]
    left_out = [line for line in lines if "is left out" in line]
    assert [line.split()[2] for line in left_out] == ["1", "4", "5", "6", "7"]
    assert "SGLang has no platform for cpu" in left_out[0]
    reason = "vendor cpu has no kernel here but the references"
    assert f"step 3 runs no kernel whose place a reference could take: {reason}." in left_out[1]
    (fused,) = [line for line in lines if "Right answers: sglang-fl is not to blame." in line]
    assert "Wrong answers: a reference or the translation of a layer is to blame" in fused


def test_plan_as_json_has_each_step_with_its_command_or_the_reason(install: Install):
    result = CliRunner().invoke(app, ["bisect", "--plan", "--json", "--model", "a model"])
    on_cpu = json.loads(result.stdout)
    assert [step["number"] for step in on_cpu if step["left_out"]] == [1, 4, 5, 6, 7]
    install("toy", CHIP)
    configure.cache_clear()
    steps = json.loads(CliRunner().invoke(app, ["bisect", "--plan", "--json", "--model", "a model"]).stdout)
    assert [step["command"] for step in steps] == commands(plan())
    assert all(step["wrong"] and step["right"] and not step["left_out"] for step in steps)


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_plan_of_a_model_that_is_not_there_is_one_message_and_code_2(words: list[str]):
    result = CliRunner().invoke(app, ["bisect", "--plan", "--model", "no model", *words])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--model 'no model': there is no such folder. Name the folder of a checkpoint." in result.stderr


def test_launch_flag_that_only_the_plugin_knows_is_not_in_step_1(install: Install):
    install("toy", CHIP)
    lines = plan("--disable-piecewise-cuda-graph")
    first, second = commands(lines)[:2]
    assert first.endswith("--cuda-graph-backend-prefill disabled")
    assert second.endswith("--disable-piecewise-cuda-graph")
    assert any("does not know --disable-piecewise-cuda-graph from 0.5.20 on" in line for line in lines)


def test_plan_with_wrong_settings_is_one_message_and_code_2(monkeypatch):
    monkeypatch.setenv("SGLANG_FL_PREFER", "flagso")
    result = CliRunner().invoke(app, ["bisect", "--plan", "--model", "a model"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "flagso" in result.stderr


def test_docs_have_the_same_table():
    page = Path(__file__).parents[3] / "docs" / "debugging.md"
    if not page.exists():
        pytest.skip("the docs are not part of this package's source distribution")
    assert markdown_table() in page.read_text()

"""What each command answers to programs is as its schema in ``docs/reference/schemas`` says."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.main import get_command
from typer.testing import CliRunner

from sglang_fl.cli import app
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.logs.json_text import json_text
from tests.schemas import SCHEMAS, assert_fits

HERE = Path(__file__).parent
#: Commands that need an engine, a server or kept calls: where their output is held against its schema.
ELSEWHERE = {
    "bisect": "test_bisect_command.py",
    "compare": "test_compare_servers.py",
    "profile": "test_profile_command.py",
    "replay": "test_kept_calls.py",
    "tune": "test_tune_command.py",
}
VENDOR = """
from sglang_fl.vendor import AtenChoice, AtenOffer, AtenOp, BackendKind, OpImpl, Quarantined, Vendor

def ops():
    return [AtenOp("mul.Tensor", "mul"), AtenOp("cos", "cos")]

CHIP = Vendor(
    "toy", "cpu", 1, "sglang_fl.registry.cpu:why_unavailable",
    impls=(
        OpImpl("relu2", BackendKind.FLAGOS, "flagos", "sglang_fl.ops.relu2:relu2"),
        OpImpl("relu2", BackendKind.VENDOR, "vendor.toy", "no_such_package.kernels:relu2"),
    ),
    quarantine=(Quarantined("relu2", "flagos", "it returns zeros", "pydantic", ">=1", "toy:proof"),),
    aten=AtenOffer(__name__ + ":ops", __name__ + ":kernels", choices=(AtenChoice(("mul",), True, "fast"),)),
)
"""


def answer(*words: object) -> Any:
    """Run a command with ``--json``, and return what it prints."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert isinstance(done.exception, SystemExit | None), done.exception
    return json.loads(done.stdout, parse_constant=pytest.fail)


def commands_with_json() -> set[str]:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    return {name for name, command in commands.items() if any("--json" in p.opts for p in command.params)}


def test_each_command_that_answers_programs_has_a_schema_and_no_other():
    assert {schema["title"].split()[1] for schema in SCHEMAS.values()} == commands_with_json()
    for name, schema in SCHEMAS.items():
        assert name.startswith(schema["title"].split()[1])


def objects(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each schema of an object in a schema, with its path."""
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object":
        yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from objects(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        yield from objects(schema.get(key), f"{path}[]")


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_says_all_of_each_key(name: str):
    Draft202012Validator.check_schema(SCHEMAS[name])
    assert SCHEMAS[name]["title"].startswith("sglang-fl ")
    for path, schema in objects(SCHEMAS[name]):
        properties = schema.get("properties", {})
        assert "additionalProperties" in schema, path
        assert [key for key, value in properties.items() if not value.get("description")] == []
        optional = {*properties} - {*schema.get("required", properties)}
        assert not optional or name == "compare", (path, optional)


@pytest.mark.parametrize(("name", "file"), ELSEWHERE.items())
def test_a_schema_is_held_against_output_elsewhere(name: str, file: str):
    assert f'fits("{name}"' in (HERE / file).read_text()


@pytest.fixture
def cases(install: Callable[..., str], tmp_path: Path) -> dict[str, tuple[object, ...]]:
    """The commands whose output is held against a schema here, on a machine where each part has a row."""
    install("toy", VENDOR)
    install("broken", "import no_such_kernel_library\n")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"vocab_size": 8}')
    logs = [tmp_path / "one.log", tmp_path / "other.log"]
    for path, ran in zip(logs, ("flagos(flagos)", "sglang(plugin:acme)"), strict=True):
        DispatchLog(path).write("RMSNorm", ran)
    logs[0].write_text(f"{logs[0].read_text()}no line of ours\n")
    record = tmp_path / "aten.log"
    record.write_text("[DEBUG] flag_gems.ops.mul.mul: GEMS MUL aten::mul.Tensor\n")
    certificates = tmp_path / "certificate.json", tmp_path / "references.json"
    for certificate, more in zip(certificates, ((), ("--references",)), strict=True):
        CliRunner().invoke(app, ["verify", "relu2", "--certificate", str(certificate), *more])
    return {
        "env": ("env",),
        "vendors": ("vendors",),
        "ops": ("ops",),
        "ops-aten": ("ops", "--aten"),
        "why": ("why", "relu2"),
        "coverage": ("coverage",),
        "bisect-plan": ("bisect", "--plan", "--model", model),
        "doctor": ("doctor", "--only", "vendors", "--only", "settings", "--only", "dispatch-log"),
        "report": (
            *("report", "--dispatch", logs[0], "--dispatch", logs[1], "--aten", record),
            *("--against-dispatch", logs[1]),
        ),
        "verify": ("verify", "relu2"),
        "verify-compare": ("verify", "--compare", *certificates),
        "new-vendor": ("new-vendor", "acme", "--device-type", "acme", "--into", tmp_path),
    }


#: Where the output on that machine is known not to be empty, lest an empty one fit.
NOT_EMPTY = {
    "ops-aten": (),
    "why": ("candidates", "not", "quarantine"),
    "coverage": ("layer_classes", "shortcuts"),
    "report": ("layer_classes", "aten_ops", "kernel_plugins", "differences", "no_log_lines"),
    "verify": ("not_verified", "implementations"),
    "verify-compare": (),
}


@pytest.mark.parametrize("name", sorted(SCHEMAS.keys() - ELSEWHERE.keys()))
def test_a_commands_output_is_as_its_schema_says(name: str, cases: dict[str, tuple[object, ...]]):
    data = answer(*cases[name])
    assert data
    assert [key for key in NOT_EMPTY.get(name, ()) if not data[key]] == []
    assert_fits(name, data)


def test_output_with_another_key_or_without_one_does_not_fit():
    row = {"variable": "A", "value": "", "source": "default", "meaning": "x"}
    assert_fits("env", [row])
    for wrong in ({**row, "more": 1}, {"variable": "A"}, {**row, "value": 1}):
        with pytest.raises(AssertionError, match=r"docs/reference/schemas/env\.json"):
            assert_fits("env", [wrong])


def test_numbers_that_json_has_not_are_texts():
    text = json_text({"a": float("inf"), "b": [float("nan"), 1.5], "c": (1, None)})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": "inf", "b": ["nan", 1.5], "c": [1, None]}

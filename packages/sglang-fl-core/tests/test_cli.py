"""The command ``sglang-fl``, as a user calls it."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import line_with, run, run_json
from sglang_fl import __version__
from sglang_fl.ops import OPS
from sglang_fl.registry.registry import reference_target
from sglang_fl.startup import configure

Install = Callable[..., str]
KERNEL = "sglang_fl.ops.rms_norm:rms_norm"
NATIVE = f'OpImpl("rms_norm", VENDOR, "vendor.toy", "{KERNEL}"),'
NEEDY = f'OpImpl("rms_norm", FLAGOS, "flagos", "{KERNEL}", ("no_such_package",)),'
MISSPELT = f'OpImpl("rms_norm", VENDOR, "vendor.toy", "{KERNEL[:-4]}nrom"),'
QUARANTINED = """
from sglang_fl.vendor import BackendKind, OpImpl, Quarantined, Vendor

CHIP = Vendor(
    "toy",
    device_type="cpu",
    core_api=1,
    probe="sglang_fl.registry.cpu:why_unavailable",
    impls=(OpImpl("rms_norm", BackendKind.FLAGOS, "flagos", "no_such_package.kernels:rms_norm"),),
    quarantine=(
        Quarantined("rms_norm", "flagos", "it returns zeros", "pydantic", "{versions}", "toy:proof"),
    ),
)
"""
ATEN = """
from sglang_fl.vendor import AtenChoice, AtenOffer, AtenOp, AtenQuarantined, Vendor

def ops():
    names = {"mul.Tensor": "mul", "lt.Tensor": "lt", "sub.Tensor": "sub", "cos": "cos"}
    return [AtenOp(overload, name) for overload, name in names.items()]

def kernels():
    raise AssertionError("a listing loaded me")

CHIP = Vendor(
    "toy", "cpu", 1, "sglang_fl.registry.cpu:why_unavailable",
    aten=AtenOffer(
        __name__ + ":ops",
        __name__ + ":kernels",
        choices=(AtenChoice(("mul", "lt"), True, "fast"), AtenChoice(("sub",), False, "40 us of host time")),
        quarantine=(AtenQuarantined(("lt",), "it compares in float32", "pydantic", ">=1", "toy:proof"),),
    ),
)
"""


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables do not wrap."""
    monkeypatch.setenv("COLUMNS", "300")


def test_version_is_told():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"sglang-fl-core {__version__}\n")


def test_env_tells_each_setting_and_its_source(install_vendor: Install, monkeypatch: pytest.MonkeyPatch):
    install_vendor("toy", defaults={"prefer": "vendor"})
    monkeypatch.setenv("SGLANG_FL_STRICT", "1")
    rows = {row["variable"]: (row["value"], row["source"]) for row in run_json("env")}
    assert rows["SGLANG_FL_PREFER"] == ("vendor", "vendor toy")
    assert rows["SGLANG_FL_STRICT"] == ("1", "environment")
    assert rows["SGLANG_FL_OOT_ENABLED"] == ("1", "default")


def test_env_prints_a_table(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_DISPATCH_LOG", "/tmp/dispatch.log")
    result = run("env")
    assert result.exit_code == 0
    for word in ("variable", "value", "source", "meaning"):
        assert word in result.stdout
    line = line_with("SGLANG_FL_DISPATCH_LOG", result.stdout)
    assert "/tmp/dispatch.log" in line
    assert "environment" in line


def test_vendors_tells_what_is_installed_and_why_it_is_not_available(
    install: Install, install_vendor: Install
):
    install_vendor("near")
    install_vendor("far", probe="return 'no /dev/far0'")
    install("broken", "import no_such_kernel_library\n")
    rows = {row["vendor"]: row for row in run_json("vendors")}
    assert rows["near"] == {
        "vendor": "near",
        "package": "sglang-fl-near 0.0.1",
        "device_type": "cpu",
        "available": True,
        "reason": None,
    }
    assert (rows["cpu"]["available"], rows["cpu"]["reason"]) == (True, None)
    assert (rows["far"]["available"], rows["far"]["reason"]) == (False, "no /dev/far0")
    assert rows["broken"]["device_type"] is None
    assert rows["broken"]["reason"] == "ModuleNotFoundError: No module named 'no_such_kernel_library'"


def test_vendors_prints_a_table(install_vendor: Install):
    install_vendor("near")
    install_vendor("far", probe="return 'no /dev/far0'")
    result = run("vendors")
    assert result.exit_code == 0
    assert " yes " in line_with("sglang-fl-near", result.stdout)
    line = line_with("sglang-fl-far", result.stdout)
    assert " no " in line
    assert "no /dev/far0" in line


@pytest.mark.parametrize(
    "reason", ["install sglang-fl-toy[flagos]", "cannot load [/opt/toy/libtoy.so]", "[red] light :warning:"]
)
def test_table_prints_reasons_as_they_are(install_vendor: Install, reason: str):
    install_vendor("toy", probe=f"return {reason!r}")
    result = run("vendors")
    assert result.exit_code == 0
    assert reason in line_with("sglang-fl-toy", result.stdout)


def test_vendors_works_with_a_wrong_configuration(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_PREFER", "flagso")
    assert "cpu" in {row["vendor"] for row in run_json("vendors")}


def test_ops_tells_what_runs_and_what_would_follow(install_vendor: Install):
    install_vendor("toy", impls=NATIVE)
    rows = {row["op"]: (row["runs"], row["then"]) for row in run_json("ops")}
    assert rows.keys() == OPS.keys()
    assert rows["rms_norm"] == ("vendor.toy", ["reference"])
    assert rows["silu_and_mul"] == ("reference", [])


def test_ops_prints_a_table(install_vendor: Install):
    install_vendor("toy", impls=NATIVE)
    result = run("ops")
    assert result.exit_code == 0
    cells = [cell.strip() for cell in line_with(" rms_norm ", result.stdout).split("│")]
    assert cells[1:4] == ["rms_norm", "vendor.toy", "reference"]


def test_why_tells_the_candidates_and_the_reasons_of_the_rest(
    install_vendor: Install, monkeypatch: pytest.MonkeyPatch
):
    install_vendor("toy", impls=NEEDY + NATIVE)
    monkeypatch.setenv("SGLANG_FL_PER_OP", "rms_norm=flagos|vendor")
    answer = run_json("why", "rms_norm")
    assert (answer["op"], answer["vendor"], answer["layer_2"]) == ("rms_norm", "toy", "on")
    assert answer["order"] == ["flagos", "vendor"]
    assert answer["candidates"] == [{"id": "vendor.toy", "kind": "vendor", "target": KERNEL}]
    assert answer["not"] == [
        {"what": "flagos", "reason": "no_such_package is not installed"},
        {"what": "reference", "reason": "not in the order given for this op"},
    ]
    assert answer["quarantine"] == []
    assert answer["signature"].startswith("rms_norm(x: ")
    assert answer["contract"] == (OPS["rms_norm"].reference.__doc__ or "").splitlines()[0]


def test_why_prints_candidates_and_reasons(install_vendor: Install):
    install_vendor("toy", impls=NEEDY + NATIVE)
    result = run("why", "rms_norm")
    assert result.exit_code == 0
    assert "vendor toy; order flagos | vendor | reference; layer 2 on" in result.stdout
    candidates, _, rest = result.stdout.partition("Not candidates")
    table = candidates[candidates.index("Candidates, in order") :]
    assert table.index("vendor.toy") < table.index("reference")
    assert "no_such_package is not installed" in rest


@pytest.mark.parametrize(
    ("target", "missing"),
    [
        ("sglang_fl.ops.rms_norm:rms_nrom", "sglang_fl.ops.rms_norm has no rms_nrom"),
        ("sglang_fl.ops.rmsnorm:rms_norm", "there is no module sglang_fl.ops.rmsnorm"),
        ("no_such_package.kernels:rms_norm", "there is no module no_such_package.kernels"),
        ("sglang_fl_toy_broken:rms_norm", "sglang_fl_toy_broken cannot be read: SyntaxError"),
    ],
)
def test_target_that_does_not_exist_is_named_and_runs_nowhere(
    install_vendor: Install, site: Path, target: str, missing: str
):
    (site / "sglang_fl_toy_broken.py").write_text("def rms_norm(:\n")
    install_vendor("toy", impls=f'OpImpl("rms_norm", VENDOR, "vendor.toy", "{target}"),')
    row = next(row for row in run_json("ops") if row["op"] == "rms_norm")
    assert (row["runs"], row["then"]) == ("reference", [])
    assert row["not_found"][0].startswith(f"vendor.toy: its target {target} does not exist: {missing}")
    answer = run_json("why", "rms_norm")
    assert [candidate["id"] for candidate in answer["candidates"]] == ["reference"]
    assert missing in answer["not"][0]["reason"]
    assert f"rms_norm: not found: vendor.toy: its target {target}" in run("ops").stdout


def test_function_that_a_module_imports_or_makes_is_found(install_vendor: Install, write_module):
    module = write_module("from math import cos as rms_norm\nsilu_and_mul = lambda x: x\n")
    names = ("rms_norm", "silu_and_mul")
    install_vendor(
        "toy", impls="".join(f'OpImpl("{op}", VENDOR, "vendor.toy", "{module}:{op}"),' for op in names)
    )
    rows = {row["op"]: row for row in run_json("ops")}
    assert [(rows[op]["runs"], rows[op]["not_found"]) for op in names] == [("vendor.toy", [])] * 2


def test_an_op_that_the_user_leaves_to_sglang_is_told_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_PER_OP", "rms_norm=sglang")
    assert run_json("why", "rms_norm")["sglang_first"] == "asked for by SGLANG_FL_PER_OP"
    assert "SGLang's own runs first: asked for by SGLANG_FL_PER_OP" in run("why", "rms_norm").stdout
    rows = {row["op"]: (row["runs"], row["then"]) for row in run_json("ops")}
    assert rows["rms_norm"] == ("sglang", ["asked for by SGLANG_FL_PER_OP"])


def test_why_prints_no_empty_table(install_vendor: Install):
    install_vendor("toy", impls=NATIVE + NEEDY.replace('("no_such_package",)', "()"))
    result = run("why", "rms_norm")
    assert result.exit_code == 0
    assert "Candidates, in order" in result.stdout
    assert "Not candidates" not in result.stdout


def test_why_says_that_layer_2_is_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_OOT_ENABLED", "0")
    assert run_json("why", "rms_norm")["layer_2"] == "SGLANG_FL_OOT_ENABLED=0"
    assert "layer 2 off, SGLang runs its own (SGLANG_FL_OOT_ENABLED=0)" in run("why", "rms_norm").stdout


def test_ops_says_that_sglang_runs_them_where_layer_2_is_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_OOT_ENABLED", "0")
    row = {"op": next(iter(OPS)), "runs": "sglang", "then": ["SGLANG_FL_OOT_ENABLED=0"], "not_found": []}
    assert run_json("ops")[0] == row


def test_layer_that_is_left_to_sglang_is_told_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_OOT_BLACKLIST", "SiluAndMul,RMSNorm")
    rows = {row["op"]: (row["runs"], row["then"]) for row in run_json("ops")}
    assert rows["silu_and_mul"] == ("sglang", ["SGLANG_FL_OOT_BLACKLIST names SiluAndMul"])
    assert rows["rms_norm"] == ("reference", [])  # other layer classes compute it, too
    assert run_json("why", "silu_and_mul")["layer_2"] == "SGLANG_FL_OOT_BLACKLIST names SiluAndMul"


@pytest.mark.parametrize(
    ("environment", "versions", "state"),
    [
        ({}, ">=1", "in force"),
        ({}, "<1", "the installed version is not concerned"),
        ({"SGLANG_FL_OOT_BLACKLIST": "!rms_norm"}, ">=1", "lifted by the user"),
    ],
)
def test_why_tells_the_quarantine(
    install: Install, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], versions: str, state: str
):
    install("toy", QUARANTINED.format(versions=versions))
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    answer = run_json("why", "rms_norm")
    assert answer["quarantine"] == [
        {
            "id": "flagos",
            "reason": f"it returns zeros (pydantic {versions})",
            "state": state,
            "reproduction": "toy:proof",
        }
    ]
    is_skipped = "in quarantine: it returns zeros" in str(answer["not"])
    assert is_skipped is (state == "in force")
    printed = run("why", "rms_norm").stdout.partition("Quarantine")[2]
    assert state in line_with("toy:proof", printed)


def test_ops_aten_tells_what_is_replaced_and_why_not_the_rest(install: Install):
    install("toy", ATEN)
    rows = {row["op"]: (row["kernel"], row["replaced"], row["reason"]) for row in run_json("ops", "--aten")}
    quarantine = "in quarantine: it compares in float32 (pydantic >=1)"
    assert rows == {
        "mul.Tensor": ("mul", True, "fast"),
        "lt.Tensor": ("lt", False, f"{quarantine}; !lt in a list of SGLANG_FL_FLAGOS_* lifts it"),
        "sub.Tensor": ("sub", False, "40 us of host time"),
        "cos": ("cos", False, "not measured"),
    }
    settings = {row["variable"]: (row["value"], row["source"]) for row in run_json("env")}
    assert settings["USE_FLAGGEMS"] == ("1", "vendor toy")


def test_ops_aten_follows_the_users_list(install: Install, monkeypatch: pytest.MonkeyPatch):
    install("toy", ATEN)
    monkeypatch.setenv("SGLANG_FL_FLAGOS_WHITELIST", "cos,aten::sub")
    assert [row["op"] for row in run_json("ops", "--aten") if row["replaced"]] == ["sub.Tensor", "cos"]
    line = line_with(" sub.Tensor ", run("ops", "--aten").stdout)
    assert [cell.strip() for cell in line.split("│")[1:5]] == [
        "sub.Tensor",
        "sub",
        "yes",
        "SGLANG_FL_FLAGOS_WHITELIST names aten::sub",
    ]


def test_ops_aten_says_that_layer_1_is_off(install: Install, monkeypatch: pytest.MonkeyPatch):
    assert run_json("ops", "--aten") == []
    assert run("ops", "--aten").stdout == "ATen ops: vendor cpu has no ATen kernels (layer 1)\n"
    install("toy", ATEN)
    monkeypatch.setenv("USE_FLAGGEMS", "0")
    configure.cache_clear()
    off = "USE_FLAGGEMS=0 switches layer 1 (ATen ops) off"
    assert {(row["replaced"], row["reason"]) for row in run_json("ops", "--aten")} == {(False, off)}


def test_name_of_no_aten_op_is_an_error_everywhere(install: Install, monkeypatch: pytest.MonkeyPatch):
    install("toy", ATEN)
    monkeypatch.setenv("SGLANG_FL_FLAGOS_BLACKLIST", "mull")
    for words in (["env"], ["ops"], ["ops", "--aten"]):
        result = run(*words)
        assert result.exit_code == 2
        assert result.stderr.startswith("sglang-fl: SGLANG_FL_FLAGOS_BLACKLIST='mull': the vendor's kernels")


@pytest.mark.parametrize(
    ("environment", "words", "message"),
    [
        ({}, ["why", "rms_nrom"], "there is no op 'rms_nrom'. Valid: "),
        ({"SGLANG_FL_PREFER": "flagso"}, ["ops"], "SGLANG_FL_PREFER='flagso': no such backend kind"),
        (
            {"SGLANG_FL_PREFER": "flagso"},
            ["env", "--json"],
            "SGLANG_FL_PREFER='flagso': no such backend kind",
        ),
        (
            {"SGLANG_FL_OOT_WHITELIST": "RMSNrom"},
            ["env"],
            "SGLANG_FL_OOT_WHITELIST='RMSNrom': no layer class and no op is called 'RMSNrom'.",
        ),
        ({"SGLANG_FL_CONFIG": "/no.yaml"}, ["env"], "SGLANG_FL_CONFIG='/no.yaml': No such file or directory"),
        ({"SGLANG_FL_PLATFORM": "toy"}, ["env"], "SGLANG_FL_PLATFORM='toy': no such vendor is installed"),
        (
            {"SGLANG_FL_PER_OP": "rms_norm=vendor"},
            ["ops"],
            "SGLANG_FL_PER_OP: 'rms_norm=vendor' is not available",
        ),
    ],
)
def test_error_is_one_message_and_code_2(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], words: list[str], message: str
):
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    result = run(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"sglang-fl: {message}")
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, which afterwards tells what it has imported."""
    code = (
        "import sys\n"
        "from sglang_fl.cli import app\n"
        "code = app(sys.argv[1:], standalone_mode=False) or 0\n"
        "heavy = {'flag_gems', 'sgl_kernel', 'flashinfer', 'sglang'} & sys.modules.keys()\n"
        "print('imported:', *sorted(heavy))\n"
        "sys.exit(code)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "words",
    [
        ("--version",),
        ("--help",),
        ("env",),
        ("env", "--markdown"),
        ("vendors",),
        ("ops",),
        ("ops", "--aten"),
        ("why", "rms_norm"),
        ("report", "--dispatch", os.devnull),
        ("bisect", "--help"),
        ("compare", "--help"),
        ("doctor", "--help"),
        ("verify", "--help"),
        ("new-vendor", "acme", "--device-type", "acme"),
    ],
    ids=" ".join,
)
def test_listing_does_not_wait_for_pytorch(words: tuple[str, ...], tmp_path: Path):
    code = (
        "import sys\n"
        "from sglang_fl.cli import app\n"
        "try:\n    app(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
        "print('code', code, 'slow', {'torch', 'sglang', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "code 0 slow set()", done.stderr


def test_reference_is_where_its_name_says():
    assert {name: reference_target(name) for name in OPS} == {name: op.target for name, op in OPS.items()}


@pytest.mark.parametrize("listing", ["vendors", "ops"])
def test_listing_imports_no_kernel_library(install_vendor: Install, site: Path, listing: str):
    libraries = ("flag_gems", "sgl_kernel", "flashinfer")
    for name in libraries:
        kernels = "".join(f"def {op}(): ...\n" for op in OPS)
        (site / f"{name}.py").write_text(f"raise AssertionError('a listing imported me')\n{kernels}")
    impls = [
        f'OpImpl("{op}", FLAGOS, "flagos", "{library}:{op}", ("{library}",)),'
        for op, library in zip(OPS, itertools.cycle(libraries), strict=False)
    ]
    install_vendor("toy", impls="".join(impls))
    result = command(listing, "--json")
    assert result.returncode == 0, result.stderr
    told, _, imported = result.stdout.partition("imported:")
    assert imported.split() == []
    rows = json.loads(told)
    if listing == "ops":
        assert [row["runs"] for row in rows] == ["flagos"] * len(OPS)
    else:
        assert "toy" in {row["vendor"] for row in rows}


def test_error_shows_no_traceback():
    result = command("why", "rms_nrom")
    assert result.returncode == 2
    assert result.stderr.startswith("sglang-fl: there is no op 'rms_nrom'")
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_warnings_go_to_stderr_beside_the_listing(install: Install):
    install("broken", "import no_such_kernel_library\n")
    result = command("ops", "--json")
    assert result.returncode == 0
    assert result.stderr.startswith("WARNING: vendor broken (sglang-fl-broken 0.0.1) is left out: ")
    rows = json.loads(result.stdout.partition("imported:")[0])
    assert {row["op"] for row in rows} == set(OPS)

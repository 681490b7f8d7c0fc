"""Doctor, of packages twice on the path, shadowed or replaced, and of Triton's cache; what it never shows."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from doctor_rows import Doctor, only_problem
from sglang_fl.cli import app
from sglang_fl.diagnostics import doctor as doctor_package
from sglang_fl.diagnostics.doctor import CHECKS, Launch, checks, examine

pytestmark = pytest.mark.usefixtures("forked")


def package(folder: Path, name: str, source: str = "") -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(source)
    return folder / name


def test_two_copies_of_a_package_are_found(doctor: Doctor, site: Path):
    first = package(site, "sglang")
    row = only_problem(doctor("--only", "copies"), "copies of sglang")
    assert row["text"].startswith(f"{first} is used, and hides ")
    assert "uninstall one" in row["remedy"]


def test_link_to_the_same_package_is_no_copy(doctor: Doctor, tmp_path: Path, monkeypatch):
    real = package(tmp_path / "real", "flag_gems")
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "flag_gems").symlink_to(real)
    for folder in ("real", "link"):
        monkeypatch.syspath_prepend(tmp_path / folder)
    assert "copies of flag_gems" not in doctor("--only", "copies")[1]


def test_folder_that_shadows_sglang_is_found(doctor: Doctor, tmp_path: Path, monkeypatch):
    package(tmp_path, "sglang")
    monkeypatch.chdir(tmp_path)
    row = only_problem(doctor("--only", "shadow"), "working directory")
    assert f"{tmp_path / 'sglang' / '__init__.py'} in the working directory" in row["text"]
    assert row["remedy"].startswith("start from another folder")


def test_folder_that_only_looks_like_a_shadow_is_well(doctor: Doctor, tmp_path: Path, monkeypatch):
    """A checkout's top folder has no __init__.py: Python finds the installed package behind it."""
    (tmp_path / "sglang" / "python").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    assert doctor("--only", "shadow")[0] == 0


def test_torch_that_pip_has_replaced_is_found(doctor: Doctor, metadata_of):
    metadata_of("sglang", "0.5.23", "torch==2.14.1", "torchaudio==2.11.0; sys_platform == 'nowhere'")
    metadata_of("torch", "2.9.0")
    row = only_problem(doctor("--only", "torch-pins"), "torch")
    assert "torch==2.14.1 is wanted, 2.9.0 is installed" in row["text"]
    assert "'torch==2.14.1'" in row["remedy"]
    assert "torchaudio" not in row["remedy"]


def test_torch_with_a_local_version_is_well(doctor: Doctor, metadata_of):
    metadata_of("sglang", "0.5.23", "torch==2.14.1")
    metadata_of("torch", "2.14.1+cu130")
    assert doctor("--only", "torch-pins")[0] == 0


def test_pins_of_flag_gems_that_do_not_hold_are_found(doctor: Doctor, metadata_of):
    metadata_of(
        "flag-gems", "5.0.2", "packaging==26.0", "no-such-package>=1", "PyYAML", "pytest; extra == 'test'"
    )
    metadata_of("packaging", "26.3")
    row = only_problem(doctor("--only", "flag-gems-pins"), "FlagGems' pins")
    assert "packaging==26.0 is wanted, 26.3 is installed" in row["text"]
    assert "no-such-package>=1 is not installed" in row["text"]
    assert "pytest" not in row["text"]
    assert "pip install 'packaging==26.0' 'no-such-package>=1'" in row["remedy"]


def test_pins_of_flag_gems_that_hold_are_well(doctor: Doctor, metadata_of):
    metadata_of("flag-gems", "5.0.2", "packaging>=20")
    assert doctor("--only", "flag-gems-pins")[1]["FlagGems' pins"]["text"] == "flag-gems 5.0.2: all met"


@pytest.mark.parametrize("name", ["TRITON_CACHE_DIR", "TRITON_HOME"])
def test_triton_cache_that_cannot_be_written_is_found(doctor: Doctor, tmp_path: Path, monkeypatch, name: str):
    for other in ("TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "/proc/cache")
    row = only_problem(doctor("--only", "triton-cache"), "Triton cache")
    assert row["text"].startswith("/proc/cache")
    assert "set TRITON_CACHE_DIR" in row["remedy"]
    monkeypatch.setenv(name, str(tmp_path / "new"))
    assert doctor("--only", "triton-cache")[0] == 0
    assert not (tmp_path / "new").exists()


def test_no_output_shows_a_secret(doctor: Doctor, site: Path, monkeypatch):
    """Whether a check prints the variable itself, or a process that fails quotes it."""
    secrets = {"NCCL_API_TOKEN": "tok-1234", "GLOO_PASSWORD": "pass-1234", "HF_TOKEN": "hf-secret-1234"}
    for name, text in secrets.items():
        monkeypatch.setenv(name, text)
    (site / "sgl_kernel.py").write_text("import os\nraise ImportError('got ' + os.environ['HF_TOKEN'])")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    only = ("--only", "variables-of-collectives", "--only", "sgl-kernel")
    for words in (("--json",), ()):
        output = CliRunner().invoke(app, ["doctor", "--tp", "2", *only, *words]).output
        assert "***" in output
        assert not [secret for secret in secrets.values() if secret in output]


def test_problems_come_first_and_a_failing_check_stops_no_other(monkeypatch, tmp_path: Path):
    """A working directory that is gone makes one check fail by itself."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "nosuch0")
    rows = examine(Launch(), ["installation", "shadow", "interfaces"], print)
    states = [str(row.finding.state) for row in rows]
    assert states[0] == "problem"
    assert states == sorted(states, key=["problem", "unknown", "ok"].index)
    monkeypatch.chdir(tmp_path)


def test_unknown_check_is_one_message_and_code_2():
    result = CliRunner().invoke(app, ["doctor", "--only", "memroy"])
    assert result.exit_code == 2
    assert result.stderr.startswith("sglang-fl: there is no check 'memroy'. Valid: ")
    assert "Nearest: memory." in result.stderr


def test_table_shows_problems_with_their_remedies(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "nosuch0")
    result = CliRunner().invoke(app, ["doctor", "--only", "interfaces", "--only", "installation"])
    assert result.exit_code == 1
    assert "Doctor: 2 checks: 1 problem " in result.stdout
    assert result.stdout.index("nosuch0") < result.stdout.index("sglang-fl-core")


def test_title_says_that_all_is_well():
    result = CliRunner().invoke(app, ["doctor", "--only", "installation", "--only", "entry-points"])
    assert (result.exit_code, "Doctor: 2 checks: no problem " in result.stdout) == (0, True)


def test_title_counts_the_checks_that_ran_and_those_that_found_nothing_to_look_at(monkeypatch):
    monkeypatch.setattr(checks, "CHECKS", (checks.installation, checks.rendezvous))
    monkeypatch.setattr(doctor_package, "CHECKS", checks.CHECKS)
    result = CliRunner().invoke(app, ["doctor"])
    assert "Doctor: 2 checks (1 had nothing to look at): no problem " in result.stdout


@pytest.mark.parametrize("check", ["heads", "collective", "rendezvous", "attention"])
def test_check_that_had_nothing_to_look_at_is_not_well(doctor: Doctor, check: str):
    code, rows = doctor("--only", check)
    assert (code, rows[check]["state"]) == (2, "unknown")
    assert rows[check]["text"].startswith("not looked at: ")


@pytest.mark.parametrize(
    "words",
    [
        *(("--probe-seconds", seconds) for seconds in ("-1", "0", "nan", "1e9")),
        *(("--port", port) for port in ("0", "-1", "65536")),
        ("--dtype", "float17"),
        ("--tp", "0"),
    ],
    ids=" ".join,
)
def test_wrong_argument_is_refused_with_code_2(words: tuple[str, ...]):
    result = CliRunner().invoke(app, ["doctor", "--only", "installation", *words])
    assert result.exit_code == 2
    assert words[0].lstrip("-") in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_child_is_left_where_doctor_is_ended(tmp_path: Path, number: int):
    """The child tells that it runs by making a file; doctor's own process is ended then."""
    sign = tmp_path / "running"
    child = f"open({str(sign)!r}, 'w').write(str(__import__('os').getpid())); __import__('time').sleep(90)"
    code = (
        "from sglang_fl.cli.sigterm import end_on_sigterm\n"
        "from sglang_fl.diagnostics.doctor.child import run_python\n"
        f"end_on_sigterm()\nrun_python({child!r}, 100)"
    )
    doctor = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.DEVNULL,
        # A shell that runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (sign.exists() and sign.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    doctor.send_signal(number)
    assert doctor.wait(20) != 0
    assert not psutil.pid_exists(int(sign.read_text()))


def test_every_check_has_a_sentence_and_a_name_of_its_own():
    assert all(check.__doc__ for check in CHECKS)
    assert len({check.__name__ for check in CHECKS}) == len(CHECKS)


def test_json_is_a_list_of_rows_with_all_columns(doctor: Doctor):
    rows = json.loads(CliRunner().invoke(app, ["doctor", "--json", "--only", "installation"]).stdout)
    assert rows[0].keys() == {"state", "what", "text", "remedy", "check"}


@pytest.mark.parametrize("version", ["5.4.0rc1", "5.0.3", "5.0.2.dev1"])
def test_a_flag_gems_that_nobody_has_measured_is_told(doctor: Doctor, metadata_of, version: str):
    metadata_of("flag-gems", version, "packaging>=20")
    code, rows = doctor("--only", "flag-gems-pins")
    row = rows["FlagGems' pins"]
    assert (code, row["state"]) == (2, "unknown")
    assert row["text"] == f"flag-gems {version}: all met; measured and quarantined with 5.0.2 only"
    assert row["remedy"].endswith("pip install flag-gems==5.0.2")


@pytest.mark.parametrize("variable", ["HOME", "FLAGGEMS_CACHE_DIR"])
def test_a_file_in_the_place_of_flag_gems_folder_is_found(
    doctor: Doctor, tmp_path: Path, monkeypatch, variable: str
):
    (tmp_path / ".flaggems").write_text("x")
    monkeypatch.setenv("USE_FLAGGEMS", "1")
    monkeypatch.setenv(variable, str(tmp_path if variable == "HOME" else tmp_path / ".flaggems"))
    row = only_problem(doctor("--only", "flag-gems-cache"), "FlagGems' cache")
    assert f"{tmp_path / '.flaggems'} cannot be written" in row["text"]
    assert "Not a directory" in row["text"]

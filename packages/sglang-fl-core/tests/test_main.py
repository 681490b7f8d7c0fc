"""The command from its first moment: whatever goes wrong is one line and the documented exit code."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(site: Path) -> Run:
    """Run ``sglang-fl`` in a process that finds what the test has installed in ``site``."""

    def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
        environment |= options.pop("environment", {})
        options = {"stdout": subprocess.PIPE, **options}
        return subprocess.run(
            [sys.executable, "-m", "sglang_fl", *words],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            timeout=60,
            check=False,
            **options,
        )

    return run


def one_line(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    assert done.returncode == code, done.stderr
    steps = re.compile(r"(doctor|verify): loading PyTorch")  # on a machine that has other things to do
    (line,) = (line for line in done.stderr.splitlines() if not steps.fullmatch(line))
    assert line.startswith("sglang-fl: ")
    assert line.isprintable()
    return line


@pytest.mark.parametrize("words", [["--version"], ["ops", "--json"]])
def test_an_answer_that_cannot_be_written_is_one_line(run: Run, words: list[str]):
    with Path("/dev/full").open("w") as full:
        said = one_line(run(*words, stdout=full))
    assert said.endswith("the answer cannot be written: No space left on device")


def test_a_reader_that_has_enough_is_no_error(run: Run):
    reader, writer = os.pipe()
    os.close(reader)
    done = run("ops", stdout=writer)
    os.close(writer)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "code"), [("ops", 0), ("doctor --only settings", 0), ("bisect --model none --json", 2)]
)
def test_a_standard_error_that_is_closed_is_no_error(run: Run, tmp_path: Path, words: str, code: int):
    line = f"{sys.executable} -m sglang_fl {words} 2>&-"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == code
    assert done.stdout


def test_a_device_backend_that_does_not_load_is_one_line(run: Run, site: Path):
    info = site / "torch_broken-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-broken\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[torch.backends]\nbroken = torch_broken:load\n")
    (site / "torch_broken.py").write_text("def load(): raise RuntimeError('undefined symbol: chip_init')\n")
    said = one_line(run("doctor", "--only", "settings"))
    for word in ("torch-broken", "undefined symbol: chip_init", "TORCH_DEVICE_BACKEND_AUTOLOAD=0"):
        assert word in said


def test_a_package_that_ends_the_process_while_it_is_imported_is_one_line(run: Run, site: Path):
    info = site / "torch_broken-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-broken\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[torch.backends]\nbroken = torch_broken:load\n")
    (site / "torch_broken.py").write_text("def load(): raise SystemExit(7)\n")
    assert "torch_broken ended it: SystemExit(7)" in one_line(run("verify", "silu_and_mul"))


def test_a_terminal_without_the_letters_gets_them_escaped(run: Run, tmp_path: Path):
    log = tmp_path / "d.log"
    log.write_text("[OOT-DISPATCH] Norm → flagos(flagos)\n\u2603 and \x1b[31m red\n")
    done = run("report", "--dispatch", str(log), environment={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert done.stdout.isascii()


@pytest.mark.parametrize("moment", [0.1, 1.0])
def test_ctrl_c_is_code_130_and_no_traceback(run: Run, moment: float):
    code = "from sglang_fl.__main__ import main; print('begun', flush=True); main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "doctor", "--only", "shadow", "--only", "loading"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout
    assert process.stdout.readline() == "begun\n"  # before, Python itself is interrupted
    time.sleep(moment)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


def test_a_version_that_is_none_is_told(run: Run, metadata_of: Callable[..., None], site: Path):
    metadata_of("sglang", "garbage")
    (site / "sglang").mkdir()
    (site / "sglang" / "__init__.py").write_text("")
    done = run("ops", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "the version of the installed SGLang cannot be compared: 'garbage'" in done.stdout


MANY = ",".join(f"no_such_{number}" for number in range(10_000))
LONG = "x" * 100_000
STEERING = "\x1b[31mred\u202e"


@pytest.mark.parametrize(
    ("environment", "what"),
    [
        ({"SGLANG_FL_OOT_BLACKLIST": MANY}, "and 9995 more"),
        ({"SGLANG_FL_OOT_BLACKLIST": f"!{MANY.replace(',', ',!')}"}, "and 9995 more"),
        ({"SGLANG_FL_DISPATCH_LOG": LONG, "SGLANG_FL_STRICT": "x"}, "neither 1 nor 0"),
        ({"SGLANG_FL_CONFIG": LONG}, "File name too long"),
        ({"SGLANG_FL_PLATFORM": LONG}, "no such vendor"),
        ({"SGLANG_FL_PER_OP": f"{LONG}=flagos"}, "there is no op"),
        ({"SGLANG_FL_PER_OP": f"rms_norm=vendor:{LONG}"}, "there is no vendor"),
        ({"SGLANG_FL_VERIFY": LONG}, "there is no op"),
        ({"SGLANG_FL_OOT_BLACKLIST": LONG}, "no layer class"),
        ({"SGLANG_FL_DENY_VENDORS": LONG}, "no vendor"),
        ({"SGLANG_FL_PREFER": STEERING}, "no such backend kind"),
        ({"SGLANG_FL_PLATFORM": STEERING}, "no such vendor"),
    ],
)
def test_a_refusal_is_short_and_steers_no_terminal(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], what: str
):
    from typer.testing import CliRunner

    from sglang_fl.cli import app

    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    begin = time.monotonic()
    said = CliRunner().invoke(app, ["env"])
    assert time.monotonic() - begin < 5
    assert said.exit_code == 2
    assert what in said.stderr
    assert len(said.stderr) < 8_000
    assert said.stderr.replace("\n", "").isprintable()


def test_unknown_variables_are_few_short_and_steer_no_terminal(monkeypatch: pytest.MonkeyPatch):
    from sglang_fl.settings import unknown_variables

    monkeypatch.setenv(f"SGLANG_FL_{STEERING}", "1")
    monkeypatch.setenv(f"SGLANG_FL_{'X' * 50_000}", "1")
    for number in range(1_000):
        monkeypatch.setenv(f"SGLANG_FL_NONE_{number:04}", "1")
    said = unknown_variables()
    assert len(said) == 6
    assert said[-1] == "and 997 more"
    assert sum(map(len, said)) < 2_000
    assert all(line.isprintable() for line in said)

"""Files that users name: who may read a log, where it never goes, and what is never waited for."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sglang_fl import plugin
from sglang_fl.aten.record_log import AtenRecord
from sglang_fl.cli import app
from sglang_fl.conformance.certificate import read_certificate, write_certificate
from sglang_fl.diagnostics.doctor.model import read_model
from sglang_fl.diagnostics.doctor.writable import why_no_file
from sglang_fl.diagnostics.logs import read_log
from sglang_fl.errors import SettingsError
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.logs.shared_file import SharedFile, check_appendable, named_path, open_for_reading
from sglang_fl.settings.file import read_file
from sglang_fl.startup import configure


@pytest.fixture(autouse=True)
def nothing_waits() -> Iterator[None]:
    """End what hangs in a system call, with an error that says so."""

    def hangs(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_the_file_is_for_its_owner_and_readable_by_his_group_alone(tmp_path: Path):
    before = os.umask(0)
    try:
        SharedFile(tmp_path / "log", "the log").append("line")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o640


def test_two_writers_share_it(tmp_path: Path):
    writers = [SharedFile(tmp_path / "log", "the log") for _ in range(2)]
    for number, writer in enumerate(writers * 2):
        writer.append(str(number))
    assert (tmp_path / "log").read_text() == "0\n1\n2\n3\n"


@pytest.mark.parametrize("target_exists", [True, False])
def test_a_link_is_refused_and_what_it_leads_to_is_left_alone(tmp_path: Path, target_exists: bool):
    target, link = tmp_path / "target", tmp_path / "log"
    if target_exists:
        target.write_text("mine")
    link.symlink_to(target)
    with pytest.raises(OSError, match="it is a link, and no link is followed"):
        SharedFile(link, "the log")
    assert why_no_file(link) == "it is a link, and no link is followed"
    assert link.is_symlink()
    assert target.exists() == target_exists
    assert not target_exists or target.read_text() == "mine"


def test_a_folder_that_is_a_link_is_followed(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    SharedFile(tmp_path / "link" / "log", "the log").append("line")
    assert (tmp_path / "folder" / "log").read_text() == "line\n"


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "it is a named pipe"


def folder(path: Path) -> str:
    path.mkdir()
    return "it is a folder"


def a_socket(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    return "it is a socket"


OPENERS: dict[str, Callable[[Path], object]] = {
    "dispatch log": DispatchLog,
    "ATen record": lambda path: AtenRecord(path, once=True),
    "certificate": lambda path: write_certificate({}, path),
    "other certificate": read_certificate,
    "settings": read_file,
    "log to report": lambda path: read_log([path], []),
    "model": lambda path: read_model(path.parent),
}


@pytest.mark.parametrize("make", [pipe, folder, a_socket])
@pytest.mark.parametrize("open_it", OPENERS.values(), ids=OPENERS)
def test_what_is_no_file_is_refused_by_name_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], str], open_it
):
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    kind = make(Path("config.json"))
    with pytest.raises((OSError, SettingsError), match=kind):
        open_it(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["SGLANG_FL_DISPATCH_LOG", "SGLANG_FLAGGEMS_LOG_PATH"])
def test_doctor_names_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    os.mkfifo(tmp_path / "p")
    assert why_no_file(tmp_path / "p") == "it is a named pipe"


def test_a_device_without_room_is_told_at_once():
    with pytest.raises(OSError, match="No space left on device"):
        SharedFile(Path("/dev/full"), "the log")
    assert why_no_file(Path("/dev/full")) == "No space left on device"


def test_a_character_device_is_a_log():
    SharedFile(Path("/dev/null"), "the log").append("line")
    assert why_no_file(Path("/dev/null")) is None


@pytest.mark.parametrize("path", ["/dev/stderr", "/dev/fd/2", "/proc/self/fd/2", "/dev//fd/../stderr"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "file"])
def test_what_the_process_has_open_is_a_log(tmp_path: Path, path: str, kind: str):
    program = f"""if True:
        from pathlib import Path
        from sglang_fl.logs.dispatch_log import DispatchLog
        DispatchLog(Path({path!r})).write("Norm", "flagos(flagos)")
    """
    ours, theirs = socket.socketpair()
    target = {"pipe": subprocess.PIPE, "socket": theirs, "file": (tmp_path / "err").open("wb")}[kind]
    done = subprocess.run([sys.executable, "-c", program], stderr=target, check=False)
    said = {
        "pipe": lambda: done.stderr,
        "socket": lambda: ours.recv(999),
        "file": (tmp_path / "err").read_bytes,
    }
    theirs.close()
    assert said[kind]().decode() == "[OOT-DISPATCH] Norm → flagos(flagos)\n"
    assert done.returncode == 0
    ours.close()


def test_what_the_process_has_not_open_is_no_log(tmp_path: Path):
    with pytest.raises(OSError, match="this process has no open file 987"):
        SharedFile(Path("/dev/fd/987"), "the log")
    with (tmp_path / "mine").open("xb") as mine:
        link = f"/dev/fd/{mine.fileno()}"
        with pytest.raises(OSError, match="is not open for reading"):
            open_for_reading(Path(link))
    with open_for_reading(tmp_path / "mine") as mine, pytest.raises(OSError, match="not open for writing"):
        SharedFile(Path(f"/dev/fd/{mine.fileno()}"), "the log")


def test_a_log_is_read_through_a_shells_pipe():
    reader, writer = os.pipe()
    os.write(writer, "[OOT-DISPATCH] Norm → flagos(flagos)\n".encode())
    os.close(writer)
    assert list(read_log([Path(f"/dev/fd/{reader}")], []).dispatch) == ["Norm"]
    os.close(reader)


def test_the_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SGLANG_FL_CONFIG", "~/fl.yaml")
    (tmp_path / "fl.yaml").write_text("dispatch_log: ~/d.log\n")
    assert configure().settings.dispatch_log == tmp_path / "d.log"
    assert named_path("./~") == Path("~")


@pytest.mark.parametrize("name", ["SGLANG_FL_CONFIG", "SGLANG_FL_DISPATCH_LOG"])
def test_a_home_folder_of_nobody_is_refused(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "~no_such_user/x")
    with pytest.raises(SettingsError, match=rf"^{name}='~no_such_user/x': '~' names a home folder that"):
        configure()


CLASHES = [
    {"SGLANG_FL_CONFIG": "fl.yaml", "SGLANG_FL_DISPATCH_LOG": "./fl.yaml"},
    {"SGLANG_FL_CONFIG": "fl.yaml", "SGLANG_FL_DISPATCH_LOG": "hard.yaml"},
    {"SGLANG_FL_CONFIG": "linked.yaml", "SGLANG_FL_DISPATCH_LOG": "fl.yaml"},
    {"SGLANG_FL_CONFIG": "fl.yaml", "SGLANG_FLAGGEMS_LOG_PATH": "fl.yaml"},
    {"SGLANG_FL_CONFIG": "fl.yaml", "SGLANG_FL_SIMULATED_RECORD": "fl.yaml", "SGLANG_FL_SIMULATED": "none"},
    {"SGLANG_FL_DISPATCH_LOG": "new.log", "SGLANG_FLAGGEMS_LOG_PATH": "folder/../new.log"},
]


@pytest.mark.parametrize("environment", CLASHES)
def test_one_file_for_two_purposes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("fl.yaml").write_text("strict: 1\n")
    os.link("fl.yaml", "hard.yaml")
    Path("linked.yaml").symlink_to("fl.yaml")
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(SettingsError, match=r" and .* are the same file\. Name two\.$"):
        configure()
    assert Path("fl.yaml").read_text() == "strict: 1\n"


def test_two_logs_may_go_to_one_screen(monkeypatch: pytest.MonkeyPatch):
    for name in ("SGLANG_FL_DISPATCH_LOG", "SGLANG_FLAGGEMS_LOG_PATH"):
        monkeypatch.setenv(name, "/dev/stderr")
    assert configure()


def test_doctor_tells_a_log_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_DISPATCH_LOG", "/dev/full")
    said = CliRunner().invoke(app, ["doctor", "--only", "dispatch-log", "--json"])
    (row,) = json.loads(said.stdout)
    assert (said.exit_code, row["state"]) == (1, "problem")
    assert "No space left on device" in row["text"]


def test_a_path_is_checked_without_making_the_file(tmp_path: Path):
    check_appendable(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    os.mkfifo(tmp_path / "p")
    wrong_ones = {"no/x": "No such file", "p": "it is a named pipe", "x" * 300: "name too long"}
    for wrong, reason in wrong_ones.items():
        with pytest.raises(OSError, match=reason):
            check_appendable(tmp_path / wrong)


@pytest.mark.parametrize(
    "environment",
    [
        {"SGLANG_FL_OOT_ENABLED": "0", "SGLANG_FL_DISPATCH_LOG": "/nope/x"},
        {"SGLANG_FLAGGEMS_LOG_PATH": "/nope/x"},
    ],
)
def test_a_log_that_cannot_be_written_is_refused_also_where_nothing_is_logged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], environment: dict[str, str]
):
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(SystemExit, match="2"):
        plugin.load_plugin()
    assert "/nope/x': the file cannot be opened for appending (No such file" in capsys.readouterr().err

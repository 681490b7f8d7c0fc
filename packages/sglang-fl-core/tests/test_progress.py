"""What commands say on standard error while they take their time: on a terminal, and elsewhere."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from sglang_fl import progress
from sglang_fl.cli import app
from sglang_fl.progress import Count, Progress

CLEAR = "\r\x1b[K"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is due after a tenth of a second, and a terminal's is written anew ten times as often."""
    monkeypatch.setattr(progress, "INTERVAL", 0.1)
    monkeypatch.setattr(progress, "REFRESHED", 0.01)


@contextlib.contextmanager
def terminal(columns: int) -> Iterator[tuple[TextIO, Callable[[], str]]]:
    """A terminal of so many columns, and what was written to it so far."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    os.set_blocking(ours, False)
    said = b""

    def read() -> str:
        nonlocal said
        while True:
            try:
                said += os.read(ours, 65536)
            except (BlockingIOError, OSError):
                return said.decode()

    with os.fdopen(theirs, "w") as stream:
        yield stream, read
    os.close(ours)


def until(holds: Callable[[], bool]) -> None:
    """Wait for what a thread does."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_is_done_at_once_is_not_told():
    said = io.StringIO()
    with terminal(80) as (stream, read):
        for where in (said, stream):
            with Progress("doctor", "loading PyTorch", where) as told:
                for number in range(50):
                    told.step(f"check {number}")
        assert read() == ""
    assert said.getvalue() == ""


def test_a_pipe_gets_a_line_for_each_step_that_lasts(hasty):
    said = io.StringIO()
    with Progress("doctor", "loading PyTorch", said) as told:
        until(lambda: "loading" in said.getvalue())
        for name in ("a", "b", "c"):  # none of which lasts, but the last
            told.step(name)
        until(lambda: said.getvalue().count("\n") == 2)
        time.sleep(0.3)  # it is not told again
    assert said.getvalue() == "doctor: loading PyTorch\ndoctor: c\n"


def test_a_listing_says_nothing_where_nobody_looks(hasty):
    said = io.StringIO()
    with Progress("ops", "looking", said, on_terminals_alone=True) as told:
        told.step("a")
        time.sleep(0.3)
    assert said.getvalue() == ""


@pytest.mark.parametrize("no_color", [None, "1"])
def test_a_terminal_gets_one_line_which_fits_and_is_gone_at_the_end(hasty, monkeypatch, no_color):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    name = f"{'fused_recurrent_gated_delta_rule_packed_decode ' * 3}(3 of 39), about 1:20 left"
    with terminal(80) as (stream, read):
        with Progress("verify", "loading PyTorch", stream) as told:
            until(lambda: "loading PyTorch, 0:00" in read())
            told.step(name)
            until(lambda: "left" in read())
        text = read()
    assert text.endswith(CLEAR)
    assert "\n" not in text
    lines = text.split(CLEAR)
    assert max(map(len, lines)) == 79  # in the last column a terminal would go on in the next line
    assert re.fullmatch(r"verify: fused_\w+\.\.\.\w+ \(3 of 39\), about 1:20 left, 0:0\d", lines[-2])
    assert "\x1b" not in "".join(lines)


def test_a_narrow_terminal_is_not_overrun(hasty, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    with terminal(24) as (stream, read):
        with Progress("verify", "a step whose name is long", stream):
            until(lambda: "verify" in read())
        assert max(map(len, read().split(CLEAR))) == 23


def test_a_terminal_that_cannot_write_over_gets_lines(hasty, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with terminal(80) as (stream, read):
        with Progress("doctor", "loading PyTorch", stream):
            until(lambda: "loading" in read())
        assert read() == "doctor: loading PyTorch\r\n"


def test_what_is_said_stays_and_the_line_goes_on_below(hasty, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    with terminal(80) as (stream, read):
        with Progress("bisect", "loading SGLang", stream) as told:
            until(lambda: "loading" in read())
            told.say("everything on: equal")
            told.step("5 ops on")
            until(lambda: "5 ops on, 0:0" in read())
        text = read()
    before, after = text.split("everything on: equal\r\n")
    assert before.endswith(CLEAR)
    assert after.startswith(f"{CLEAR}bisect: 5 ops on")
    assert text.endswith(CLEAR)


def test_what_is_said_is_not_told_again_in_a_pipe(hasty):
    said = io.StringIO()
    with Progress("tune", "loading PyTorch", said) as told:
        told.say("tune, 29:43 left: recording")
        time.sleep(0.3)
    assert said.getvalue() == "tune, 29:43 left: recording\n"


def test_secrets_and_what_would_steer_a_terminal_are_not_told(hasty, monkeypatch):
    monkeypatch.setenv("ACME_API_KEY", "sk-not-to-be-seen")
    said = io.StringIO()
    with Progress("compare", "http://x:sk-not-to-be-seen@h\x1b[31m", said):
        until(lambda: "\n" in said.getvalue())
    assert "seen" not in said.getvalue()
    assert said.getvalue().strip().isprintable()


def test_an_error_ends_the_line_first(hasty, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    with terminal(80) as (stream, read):
        with contextlib.suppress(ValueError), Progress("doctor", "loading PyTorch", stream):
            until(lambda: "loading" in read())
            raise ValueError("no chip")
        assert read().endswith(CLEAR)


def test_a_reader_that_is_gone_is_no_error(hasty):
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            asked.append(text)
            raise BrokenPipeError

    asked: list[str] = []
    with Progress("doctor", "loading PyTorch", Gone()) as told:
        until(lambda: bool(asked))
        told.say("a line")
    assert asked[-1] == "a line\n"


def test_steps_are_counted_and_the_time_left_is_that_of_those_before(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    count = Count(4)
    assert count.next("a") == "a (1 of 4)"
    now += 30
    assert count.next("b") == "b (2 of 4), about 1:30 left"
    now += 10
    assert count.next("c") == "c (3 of 4), about 0:40 left"
    now += 1000
    assert count.next("d") == "d (4 of 4), about 5:46 left"


#: Of each command a line that is answered in seconds; None where a command only writes a few files.
COMMANDS: dict[str, tuple[str, ...] | None] = {
    "env": ("env",),
    "vendors": ("vendors",),
    "ops": ("ops",),
    "why": ("why", "rms_norm"),
    "coverage": ("coverage",),
    "bisect": ("bisect", "--model", "none"),
    "compare": ("compare", "http://127.0.0.1:9", "http://127.0.0.1:9"),
    "tune": ("tune", "--model", "none"),
    "profile": ("profile", "--model", "none"),
    "replay": ("replay", "none"),
    "doctor": ("doctor", "--only", "settings"),
    "report": ("report", "--issue", "issue.md", "--dispatch", "none"),
    "verify": ("verify", "relu2"),
    "new-vendor": None,
}


def test_each_command_is_one_of_these():
    assert COMMANDS.keys() == get_command(app).commands.keys()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name, words in COMMANDS.items() if words])
def test_each_command_says_what_it_does_while_it_lasts(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told: list[tuple[str, bool]] = []
    enter = Progress.__enter__

    def entered(self: Progress) -> Progress:
        told.append((self._what, bool(self._doing)))
        return enter(self)

    monkeypatch.setattr(Progress, "__enter__", entered)
    words = COMMANDS[name]
    assert words
    CliRunner().invoke(app, list(words))
    assert told == [(name, True)]

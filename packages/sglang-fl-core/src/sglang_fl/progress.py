"""What a command is doing while it takes its time, on standard error.

A command that answers within two seconds says nothing. Then a terminal gets one line that is written over
every second, with the time so far; it is gone when the answer comes. A file or a pipe gets a line for each
step that lasts, at most one in two seconds. No colours; 80 columns, or those of the terminal.
"""

import io
import os
import sys
import threading
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console

from sglang_fl.errors import printable
from sglang_fl.logs.redaction import redacted

__all__ = ["Count", "Progress"]

#: Seconds before the first line, and between two where standard error is no terminal.
INTERVAL = 2.0
#: Seconds after which a terminal's line is written anew.
REFRESHED = 1.0
COLUMNS = 80
_CLEAR = "\r\x1b[K"


class Progress:
    """Tells what is done in this context.

    Parameters
    ----------
    what : the command, the beginning of each line
    doing : what it begins with, before any step is told
    stream : where it is told; standard error where that is not given
    on_terminals_alone : whether a file or a pipe gets nothing but what ``say`` is given
    """

    def __init__(
        self, what: str, doing: str, stream: TextIO | None = None, *, on_terminals_alone: bool = False
    ) -> None:
        self._what, self._doing = what, doing
        self._stream = stream or sys.stderr or io.StringIO()  # there is none where it was closed: 2>&-
        is_dumb = Console(file=self._stream).is_dumb_terminal  # where a line cannot be written over
        self._is_terminal = self._stream.isatty() and not is_dumb
        self._is_quiet = on_terminals_alone and not self._is_terminal
        self._is_shown = False
        self._is_told = False
        self._begun = self._last = time.monotonic()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="sglang-fl-progress")

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        with self._lock:
            self._clear()

    def step(self, text: str) -> None:
        """Say what begins now."""
        with self._lock:
            self._doing, self._is_told = text, False
            self._tell_if_due()

    def say(self, line: str) -> None:
        """Write a line that stays, whatever the stream is."""
        with self._lock:
            self._clear()
            self._write(f"{printable(redacted(line))}\n")
            self._doing, self._is_told = line, True
            self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(REFRESHED):
            with self._lock:
                self._tell_if_due()

    def _tell_if_due(self) -> None:
        now = time.monotonic()
        if self._is_shown:
            self._write(f"{_CLEAR}{self._line(now)}")
        elif self._is_quiet or now - self._last < INTERVAL:
            return
        elif self._is_terminal:
            self._write(f"{_CLEAR}{self._line(now)}")
            self._is_shown = True
        elif not self._is_told:
            self._write(f"{self._line(None)}\n")
            self._is_told, self._last = True, now

    def _line(self, now: float | None) -> str:
        """Return the line, which fits; with the time so far where it is written over."""
        end = "" if now is None else f", {_span(now - self._begun)}"
        doing = printable(redacted(self._doing)).replace("\n", " ")
        return f"{self._what}: {_cut(doing, self._columns - len(self._what) - len(end) - 3)}{end}"

    @property
    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or COLUMNS
        except (OSError, ValueError):
            return COLUMNS

    def _clear(self) -> None:
        if self._is_shown:
            self._write(_CLEAR)
            self._is_shown = False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads it any more; the answer counts all the same
            return


class Count:
    """Counts steps that take about as long as one another, and says for how long they will.

    Parameters
    ----------
    count : of all steps
    """

    def __init__(self, count: int) -> None:
        self._count, self._number = count, 0
        self._begun = time.monotonic()

    def next(self, text: str) -> str:
        """Return what is said of the next step: ``relu2 reference (3 of 12), about 1:20 left``."""
        self._number += 1
        done = self._number - 1
        passed = time.monotonic() - self._begun
        left = passed / done * (self._count - done) if done else 0.0
        told = f", about {_span(left)} left" if left >= 1 else ""
        return f"{text} ({self._number} of {self._count}){told}"


def _span(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _cut(text: str, most: int) -> str:
    """Return a text in so many characters: of a long one beginning and end, where what is counted stands."""
    if len(text) <= most:
        return text
    end = max(0, most - 3) // 2
    return f"{text[: max(0, most - 3 - end)]}...{text[len(text) - end :]}"

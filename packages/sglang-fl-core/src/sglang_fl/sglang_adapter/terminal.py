"""The terminal of a command that runs an engine: steps go there, and what the engine prints to its log."""

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

__all__ = ["last_error", "last_line", "printing_to", "terminal"]

#: How a traceback ends.
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)(?::|$)")


def terminal() -> TextIO:
    """Return standard error as it is now, for steps; the engine's output goes elsewhere later.

    Where it has no descriptor, because somebody captures it, it is returned itself; where it was closed, what
    nobody reads.
    """
    if sys.stderr is None:
        return io.StringIO()
    try:
        return os.fdopen(os.dup(sys.stderr.fileno()), "w", errors="backslashreplace")
    except (OSError, ValueError):
        return sys.stderr


@contextmanager
def printing_to(log: Path) -> Iterator[None]:
    """Send what this process and those that it starts print to a file: steps must not drown in it.

    Parameters
    ----------
    log : made if missing, for its owner alone
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in kept:
        os.dup2(opened, stream)
    os.close(opened)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, copy in kept.items():
            os.dup2(copy, stream)
            os.close(copy)


def last_error(log: Path) -> str:
    """Return the last line of an engine's log that an exception has written, or else the last line.

    Behind it stand what other ranks and processes say of their own end.
    """
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    raised = (line for line in reversed(lines) if _EXCEPTION.match(line))
    return next(raised, "")[:500] or last_line(log)


def last_line(log: Path) -> str:
    """Return the last thing that an engine has said in its log; of a long line the end."""
    try:
        lines = log.read_text(errors="replace").split("\n")
    except OSError:
        return "it said nothing"
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")[-300:]

"""What a command is doing while it takes its time, on standard error."""

import sys
import time

__all__ = ["Progress"]

#: Seconds between two lines where standard error is no terminal.
INTERVAL = 2.0
_CLEAR = "\r\x1b[K"


class Progress:
    """Tells each step: one line that is written over on a terminal, else at most a line every two seconds.

    Parameters
    ----------
    what : what is done, the beginning of each line
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._is_terminal = sys.stderr.isatty()
        self._told: float | None = None

    def step(self, text: str) -> None:
        """Say what begins now."""
        now = time.monotonic()
        if self._is_terminal:
            sys.stderr.write(f"{_CLEAR}{self._what}: {text}")
        elif self._told is None or now - self._told >= INTERVAL:
            sys.stderr.write(f"{self._what}: {text}\n")
        else:
            return
        self._told = now
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the terminal's line empty for what follows."""
        if self._is_terminal and self._told is not None:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()

"""The minutes that a run may take."""

import time

from sglang_fl.errors import SglangFlError

__all__ = ["Budget", "OutOfTimeError"]


class OutOfTimeError(SglangFlError):
    """The minutes are over, or what comes next would not end within them."""


class Budget:
    """Counts down from the moment at which it is made.

    Parameters
    ----------
    minutes : in all
    """

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def less(self, seconds: float) -> "Budget":
        """Return what is left of it if so many seconds are kept for what follows."""
        return Budget(max(0.0, self.left - seconds) / 60)

    @property
    def left(self) -> float:
        """Seconds that are left; never below 0."""
        return max(0.0, self._end - time.monotonic())

    def has(self, seconds: float) -> bool:
        """Whether what takes so many seconds still ends in time."""
        return seconds < self.left

    def require(self, seconds: float = 0.0) -> None:
        """Raise ``OutOfTimeError`` unless so many seconds are left."""
        if not self.has(seconds):
            raise OutOfTimeError(f"{self} of the minutes are left")

    def __str__(self) -> str:
        left = round(self.left)
        return f"{left // 60}:{left % 60:02d}"

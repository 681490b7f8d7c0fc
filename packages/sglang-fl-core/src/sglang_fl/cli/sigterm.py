"""SIGTERM, which would leave behind what a command has started."""

import signal
import sys

__all__ = ["end_on_sigterm"]


def end_on_sigterm() -> None:
    """Have SIGTERM end this process as Ctrl-C does: what it has started is ended first."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))

"""The terminal of a bisection: steps go there while what the engine prints goes to its log."""

import os
import sys
from collections.abc import Callable

from sglang_fl.errors import printable
from sglang_fl.logs.redaction import redacted

__all__ = ["teller"]


def teller(otherwise: Callable[[str], None]) -> Callable[[str], None]:
    """Return what tells a step on standard error as it is now; the engine's output goes elsewhere later.

    Parameters
    ----------
    otherwise : tells steps where standard error has no descriptor, because somebody captures it
    """
    try:
        terminal = os.fdopen(os.dup(sys.stderr.fileno()), "w", errors="backslashreplace")
    except (OSError, ValueError):
        return otherwise

    def tell(step: str) -> None:
        terminal.write(f"{printable(redacted(step))}\n")
        terminal.flush()

    return tell

"""Standard output of a process that answers by lines: nothing else that prints there gets between them."""

import os
import sys
from typing import IO

__all__ = ["own_output"]


def own_output() -> IO[str]:
    """Return standard output for answers alone; what others print goes to standard error from now on."""
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers

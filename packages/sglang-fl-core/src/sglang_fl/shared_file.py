"""A log file to which several processes append whole lines."""

import logging
import os
from pathlib import Path

__all__ = ["SharedFile"]

logger = logging.getLogger(__name__)


class SharedFile:
    """Appends lines to a file; lines of several processes never mix.

    Parameters
    ----------
    path : the file, created empty if missing; None keeps no log
    what : what the file is, for a warning

    Raises
    ------
    OSError : the file cannot be opened for appending
    """

    def __init__(self, path: Path | None, what: str) -> None:
        self._what = what
        # Opened once and for good: a folder that is gone later, or a cwd that changed, loses nothing.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = None if path is None else os.open(path, flags, 0o644)

    def append(self, line: str) -> None:
        """Write one line, without its end, by one write."""
        if self._file is None:
            return
        try:
            os.write(self._file, f"{line}\n".encode())
        except OSError as error:  # a full disk must not end a server that runs well otherwise
            logger.warning("%s ends here, it cannot be written any more: %s", self._what, error)
            self._file = None

"""A log file to which several processes append whole lines."""

import errno
import logging
import os
from pathlib import Path

__all__ = ["SharedFile", "open_for_appending"]

logger = logging.getLogger(__name__)

#: For this user, and for reading by his group.
MODE = 0o640


def open_for_appending(path: Path) -> int:
    """Return a descriptor of a file, created if missing: for its owner, and for his group to read.

    A link is not followed: in a folder where others may write, it would lead elsewhere with our rights.

    Raises
    ------
    OSError : it cannot be opened, or is a link
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, flags, MODE)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise OSError(errno.ELOOP, "it is a link, and no link is followed", str(path)) from None
        raise


class SharedFile:
    """Appends lines to a file; lines of several processes never mix.

    Parameters
    ----------
    path : the file, created empty if missing; None keeps no log
    what : what the file is, for a warning

    Raises
    ------
    OSError : the file cannot be opened for appending, or is a link
    """

    def __init__(self, path: Path | None, what: str) -> None:
        self._what = what
        # Opened once and for good: a folder that is gone later, or a cwd that changed, loses nothing.
        self._file = None if path is None else open_for_appending(path)

    def append(self, line: str) -> None:
        """Write one line, without its end, by one write."""
        if self._file is None:
            return
        try:
            os.write(self._file, f"{line}\n".encode())
        except OSError as error:  # a full disk must not end a server that runs well otherwise
            logger.warning("%s ends here, it cannot be written any more: %s", self._what, error)
            self._file = None

"""Files that a user names: opened without ever waiting, and only where they are files.

A regular file and a character device are opened; a named pipe, a socket and a folder are refused by name,
because they would wait for a reader or cannot hold a log. ``/dev/stderr`` and its like are links, and stand
for what the process has open already, which in a container is a pipe: these are taken as they are.
"""

import errno
import fcntl
import logging
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

__all__ = ["SharedFile", "is_same_file", "named_path", "open_for_appending", "open_for_reading", "write_text"]

logger = logging.getLogger(__name__)

#: For this user, and for reading by his group.
MODE = 0o640
_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"(?:/dev/fd|/proc/self/fd)/([0-9]{1,9})")
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFBLK: "a block device",
}


def named_path(text: str) -> Path:
    """Return the path that a user has written; a leading ``~`` is the home folder.

    Raises
    ------
    ValueError : no file can have this name, or there is no such user
    """
    if "\0" in text:
        raise ValueError("a path cannot hold a null character")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError("no file system can hold this name") from None
    expanded = os.path.expanduser(text)  # noqa: PTH111 - a Path forgets the './' of './~', a file called '~'
    if text.startswith("~") and expanded == text:
        raise ValueError("'~' names a home folder that is not known")
    return Path(expanded)


def open_for_appending(path: Path) -> int:
    """Return a descriptor of a file, created if missing: for its owner, and for his group to read.

    A link is not followed: in a folder where others may write, it would lead elsewhere with our rights.

    Raises
    ------
    OSError : it cannot be opened or written, is a link, or is no file
    """
    return _open_for_writing(path, os.O_APPEND)


def write_text(path: Path, text: str) -> None:
    """Write a text as the whole of a file; raises as ``open_for_appending``."""
    with os.fdopen(_open_for_writing(path, os.O_TRUNC), "w", encoding="utf-8") as file:
        file.write(text)


def open_for_reading(path: Path) -> BinaryIO:
    """Open a file that exists; links are followed.

    Raises
    ------
    OSError : it cannot be opened, or is no file
    """
    number = _descriptor(path)
    descriptor = _open(path, os.O_RDONLY) if number is None else _duplicate(number, os.O_WRONLY, path)
    return os.fdopen(descriptor, "rb")


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two paths are one regular file, by whatever names, or will be once it is made."""
    if _descriptor(one) is not None or _descriptor(other) is not None:
        return False
    try:
        return one.samefile(other) and one.is_file()
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def _open_for_writing(path: Path, how: int) -> int:
    number = _descriptor(path)
    if number is not None:
        return _duplicate(number, os.O_RDONLY, path)
    descriptor = _open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | how)
    try:
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.write(descriptor, b"")  # a device without room, /dev/full, says so at once
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _descriptor(path: Path) -> int | None:
    """Return the number of the open file that a path stands for, if it is such a path."""
    text = os.path.normpath(path)
    found = _DESCRIPTOR.fullmatch(text)
    return int(found[1]) if found else _STANDARD.get(text)


def _duplicate(number: int, wrong_mode: int, path: Path) -> int:
    """Return another descriptor of an open file; opening it anew would fail for a socket."""
    try:
        descriptor = os.dup(number)
    except (OSError, OverflowError):
        raise OSError(errno.EBADF, f"this process has no open file {number}", str(path)) from None
    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    if mode == wrong_mode or stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        purpose = "writing" if wrong_mode == os.O_RDONLY else "reading"
        raise OSError(errno.EBADF, f"the open file {number} is not open for {purpose}", str(path))
    return descriptor


def _open(path: Path, flags: int) -> int:
    try:
        # Without O_NONBLOCK, opening a pipe waits until somebody opens its other end.
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, MODE)
    except OSError as error:
        reason = _why_no_file(path, error)
        raise (OSError(error.errno, reason, str(path)) if reason else error) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISCHR(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(stat.S_IFMT(mode), 'no file')}", str(path))
    os.set_blocking(descriptor, True)
    return descriptor


def _why_no_file(path: Path, error: OSError) -> str | None:
    """Say what a path is that could not be opened, where the system's own words do not tell."""
    if error.errno == errno.ELOOP and path.is_symlink():
        return "it is a link, and no link is followed"
    if error.errno not in (errno.ENXIO, errno.EISDIR):
        return None
    try:
        kind = _KINDS.get(stat.S_IFMT(path.stat().st_mode))
    except OSError:
        return None
    return f"it is {kind}" if kind else None


class SharedFile:
    """Appends lines to a file; lines of several processes never mix.

    Parameters
    ----------
    path : the file, created empty if missing; None keeps no log
    what : what the file is, for a warning

    Raises
    ------
    OSError : as ``open_for_appending``
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

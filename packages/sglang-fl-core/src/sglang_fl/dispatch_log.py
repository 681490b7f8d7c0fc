"""The dispatch log: one ``[OOT-DISPATCH]`` line for each layer class and what really ran it."""

import logging
import os
from pathlib import Path

__all__ = ["DispatchLog"]

logger = logging.getLogger(__name__)


class DispatchLog:
    """Appends lines to a file that several processes share.

    Parameters
    ----------
    path : the file, created if missing; None keeps no log

    Raises
    ------
    OSError : the file cannot be opened for appending
    """

    def __init__(self, path: Path | None) -> None:
        self._seen: set[tuple[str, str]] = set()
        # Opened once and for good: a folder that is gone later, or a cwd that changed, loses nothing.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._file = None if path is None else os.open(path, flags, 0o644)

    def write(self, layer_class: str, ran: str) -> None:
        """Say that a layer class ran on ``ran``, ``flagos(flagos)``; once in this process.

        Whoever calls this has seen it run. One write for each line, so that lines of several
        processes never mix.
        """
        if (layer_class, ran) in self._seen:
            return
        self._seen.add((layer_class, ran))
        if self._file is None:
            return
        try:
            os.write(self._file, f"[OOT-DISPATCH] {layer_class} → {ran}\n".encode())
        except OSError as error:  # a full disk must not end a server that runs well otherwise
            logger.warning("the dispatch log ends here, it cannot be written any more: %s", error)
            self._file = None

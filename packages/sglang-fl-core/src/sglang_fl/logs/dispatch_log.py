"""The dispatch log: one ``[OOT-DISPATCH]`` line for each layer class and what really ran it."""

from pathlib import Path

from sglang_fl.logs.shared_file import SharedFile

__all__ = ["DispatchLog"]


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
        self._file = SharedFile(path, "the dispatch log")

    def write(self, layer_class: str, ran: str) -> None:
        """Say that a layer class ran on ``ran``, ``flagos(flagos)``; once in this process.

        Whoever calls this has seen it run.
        """
        if (layer_class, ran) in self._seen:
            return
        self._seen.add((layer_class, ran))
        self._file.append(f"[OOT-DISPATCH] {layer_class} → {ran}")

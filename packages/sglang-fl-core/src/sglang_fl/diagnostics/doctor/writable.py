"""Can a file be written where a server will write it? It is really tried, and leaves nothing."""

import os
import tempfile
from pathlib import Path

from sglang_fl.logs.shared_file import open_for_appending

__all__ = ["why_no_file", "why_no_folder"]


def why_no_file(path: Path) -> str | None:
    """Say why lines cannot be appended to a file, or None; one made for the attempt is removed."""
    is_new = not path.is_symlink() and not path.exists()
    try:
        os.close(open_for_appending(path))
        if is_new:
            path.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return None


def why_no_folder(folder: Path) -> str | None:
    """Say why no file can be made in a folder that may not exist yet, or None."""
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return None
    except OSError as error:
        return f"{nearest}: {error.strerror or error}"

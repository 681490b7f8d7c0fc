"""Wheels of SGLang releases and of what they pin, downloaded once, without their dependencies.

``python -m release.sglang_wheels 0.5.17 FILE.pth`` writes the folders that Python must look into first to
import that release, one a line; everything else is that of the environment.
"""

import fcntl
import re
import subprocess
import sys
import zipfile
from importlib.metadata import version as installed_version
from pathlib import Path

__all__ = ["folders_of", "unpacked"]

CACHE = Path(__file__).parents[1] / ".cache" / "wheels"
#: The tokenizers that goes with a transformers; not every release of SGLang pins it.
TOKENIZERS = {"5.12.1": "0.22.2"}


def folders_of(release: str) -> list[Path]:
    """Return the folders of a release of SGLang and of what it needs in another version than is installed."""
    folder = unpacked("sglang", release)
    return [folder, *_pinned_transformers(folder, release)]


def _pinned_transformers(folder: Path, release: str) -> list[Path]:
    """SGLang registers model types that a newer transformers has itself, so it needs its own pin."""
    metadata = (folder / f"sglang-{release}.dist-info" / "METADATA").read_text(encoding="utf-8")
    found = re.search(r"^Requires-Dist: transformers==(\S+)", metadata, re.MULTILINE)
    if found is None or found[1] == installed_version("transformers"):
        return []
    return [unpacked("transformers", found[1]), unpacked("tokenizers", TOKENIZERS[found[1]])]


def unpacked(name: str, version: str) -> Path:
    """Return a folder that holds the contents of that wheel."""
    folder = CACHE / f"{name}-{version}"
    complete = folder / "complete"
    if complete.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():  # another process may have held the lock
            _download(name, version, folder)
            complete.touch()  # last, so that an interrupted download is started again
    return folder


def _download(name: str, version: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--dest", str(folder), f"{name}=={version}"], check=True)
    archive = next(folder.glob("*.whl"))
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    archive.unlink()


if __name__ == "__main__":
    Path(sys.argv[2]).write_text("\n".join(map(str, folders_of(sys.argv[1]))), encoding="utf-8")

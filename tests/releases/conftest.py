"""Wheels of SGLang releases and of what they pin, downloaded once without their dependencies."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[2] / ".cache" / "wheels"


@pytest.fixture(scope="session")
def wheel() -> Callable[[str, str], Path]:
    """Return a function from a name and a version to a folder that holds that wheel's contents."""

    def unpacked(name: str, version: str) -> Path:
        folder = CACHE / f"{name}-{version}"
        if not (folder / "complete").exists():
            folder.mkdir(parents=True, exist_ok=True)
            _download(name, version, folder)
            (folder / "complete").touch()  # last, so that an interrupted download is started again
        return folder

    return unpacked


def _download(name: str, version: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--dest", str(folder), f"{name}=={version}"], check=True)
    archive = next(folder.glob("*.whl"))
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    archive.unlink()

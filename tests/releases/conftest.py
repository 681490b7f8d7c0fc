"""Wheels of SGLang releases and of what they pin, downloaded once without their dependencies."""

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import version as installed_version
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[2] / ".cache" / "wheels"
#: The tokenizers that goes with a transformers; not every release of SGLang pins it.
TOKENIZERS = {"5.12.1": "0.22.2"}


@pytest.fixture(scope="session")
def environment_of_release() -> Callable[[str], dict[str, str]]:
    """Return a function from a version of SGLang to variables under which Python imports that release."""

    def environment(version: str) -> dict[str, str]:
        release = unpacked("sglang", version)
        path = [release, *_pinned_transformers(release, version)]
        return {"PYTHONPATH": os.pathsep.join(map(str, path)), "CUDA_VISIBLE_DEVICES": ""}

    return environment


def _pinned_transformers(release: Path, version: str) -> list[Path]:
    """SGLang registers model types that a newer transformers has itself, so it needs its own pin."""
    metadata = (release / f"sglang-{version}.dist-info" / "METADATA").read_text()
    pin = re.search(r"^Requires-Dist: transformers==(\S+)", metadata, re.MULTILINE)[1]
    if pin == installed_version("transformers"):
        return []
    return [unpacked("transformers", pin), unpacked("tokenizers", TOKENIZERS[pin])]


def unpacked(name: str, version: str) -> Path:
    """Return a folder that holds the contents of that wheel."""
    folder = CACHE / f"{name}-{version}"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _download(name, version, folder)
        (folder / "complete").touch()  # last, so that an interrupted download is started again
    return folder


def _download(name: str, version: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--dest", str(folder), f"{name}=={version}"], check=True)
    archive = next(folder.glob("*.whl"))
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)
    archive.unlink()

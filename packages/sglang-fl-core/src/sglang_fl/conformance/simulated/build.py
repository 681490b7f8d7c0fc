"""Compile the simulated chip once for each PyTorch and source, and keep it for all processes of a user."""

import fcntl
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sglang_fl.errors import SettingsError

__all__ = ["SOURCES", "library"]

SOURCES = Path(__file__).parent / "source"
#: No Python in it: the library holds kernels and plain C functions, so one serves every Python.
_FLAGS = ("-std=c++20", "-O1", "-shared", "-fPIC", "-w")
_LIBRARIES = ("-ltorch_cpu", "-ltorch", "-lc10")
_COMPILERS = ("c++", "g++", "clang++")


def library(cache: Path | None = None) -> Path:
    """Return the compiled library, compiling it (10 to 40 s) if nobody has yet.

    Parameters
    ----------
    cache : the folder to keep it in; default ``~/.cache/sglang-fl``

    Raises
    ------
    SettingsError : there is no C++ compiler, or it fails; others may write where the library is kept
    """
    folder = cache or _cache()
    path = folder / f"simulated-chip-{_key()}.so"
    _make_private(folder)
    if not path.exists():
        with _locked(path.with_suffix(".lock")):
            if not path.exists():  # another process may have been first
                _compile(path)
    _require_own(path)
    return path


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise SettingsError(f"{folder}: the simulated chip cannot be kept there: {reason}") from None
    _require_own(folder)


def _require_own(path: Path) -> None:
    """Refuse what another user could have put there: it would be loaded into this process."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        reason = "is a link"
    elif found.st_uid != os.geteuid():
        reason = f"belongs to the user {found.st_uid}"
    elif found.st_mode & 0o022:
        reason = "can be written by others"
    else:
        return
    raise SettingsError(f"{path} {reason}: the simulated chip is not loaded from there. Remove it.")


def _cache() -> Path:
    folder = Path("~/.cache/sglang-fl").expanduser()
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if os.access(nearest, os.W_OK):
        return folder
    return Path(tempfile.gettempdir(), f"sglang-fl-{os.getuid()}")


def _key() -> str:
    """Return what the compiled library depends on: PyTorch, source, flags, machine."""
    digest = hashlib.sha256(repr((_FLAGS, _abi(), platform.machine())).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return f"torch-{torch.__version__}-{digest.hexdigest()[:16]}"


def _abi() -> str:
    return f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, which the system releases if this process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(path: Path) -> None:
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise SettingsError(
            f"the simulated chip is compiled when it is first used, and none of {', '.join(_COMPILERS)} is "
            f"on PATH. Install a C++ compiler."
        )
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unfinished = Path(folder, path.name)
        done = subprocess.run(_command(compiler, unfinished), capture_output=True, text=True)
        if done.returncode:
            raise SettingsError(
                f"the simulated chip does not compile for torch {torch.__version__}: {compiler} says:\n"
                f"{done.stderr[-2000:]}"
            )
        unfinished.replace(path)  # at once: nobody ever sees half a library


def _command(compiler: str, target: Path) -> list[str]:
    home = Path(torch.__file__).parent
    headers = (home / "include", home / "include/torch/csrc/api/include")
    return [
        compiler,
        *_FLAGS,
        _abi(),
        *(f"-I{folder}" for folder in headers),
        str(SOURCES / "chip.cpp"),
        "-o",
        str(target),
        f"-L{home / 'lib'}",
        *_LIBRARIES,
    ]

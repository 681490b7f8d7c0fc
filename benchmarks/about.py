"""The line above each table of results: how it came about."""

import os
import platform
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["COMMIT", "about", "command", "commit"]

ROOT = Path(__file__).parents[1]
#: The variable that names the commit where there is no git: on a machine that has a copy of the tree.
COMMIT = "BENCH_COMMIT"
#: Distributions that a figure depends on, and what they are called in the line.
VERSIONS = {
    "sglang": "sglang",
    "sglang-fl-core": "sglang-fl-core",
    "flag-gems": "FlagGems",
    "torch": "torch",
    "triton": "triton",
}
#: Options that say where something is written to, not what is measured.
PLACES = ("--csv", "--logs", "--homes")


def about(*more: str) -> str:
    """Return command, device, commit, versions and day, and what else the caller knows.

    Parameters
    ----------
    more : behind the rest
    """
    versions = [f"{called} {found}" for name, called in VERSIONS.items() if (found := _version(name))]
    software = ", ".join([f"commit {commit()}", *versions, f"Python {platform.python_version()}"])
    day = time.strftime("%Y-%m-%d", time.gmtime())
    return "; ".join([command(), _device(), software, day, *more])


def command() -> str:
    """Return the command line of this process, without the files that it writes."""
    spec = sys.modules["__main__"].__spec__
    words = iter(sys.argv[1:])
    told = [word for word in words if not (word in PLACES and next(words, ""))]
    return shlex.join(["python", "-m", spec.name if spec else Path(sys.argv[0]).stem, *told])


def commit() -> str:
    """Return the commit of this tree, by the variable or by git; ``-changed`` behind one that is not clean.

    ``unknown`` where neither tells. Results and pages do not make a tree unclean: they are what comes of it.
    """
    if given := os.environ.get(COMMIT):
        return given
    with suppress(OSError, subprocess.CalledProcessError):
        head = _git("rev-parse", "--short", "HEAD")
        changed = _git("diff", "--name-only", "HEAD", "--", "packages", "benchmarks", ":!benchmarks/results")
        return f"{head}-changed" if changed else head
    return "unknown"


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()}-core {platform.machine()}"


def _version(distribution: str) -> str | None:
    if distribution == "torch":
        import torch

        return torch.__version__  # with its CUDA, which the metadata leave out
    with suppress(PackageNotFoundError):
        return version(distribution)
    return None

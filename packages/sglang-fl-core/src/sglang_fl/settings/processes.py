"""Variables by which our own processes tell the ones that they start what they are."""

import multiprocessing
import os
from pathlib import Path

__all__ = [
    "ATEN_CALLS",
    "BENCH",
    "LAUNCHER",
    "PROFILE",
    "ROOM",
    "ask_for_bench",
    "ask_for_profile",
    "aten_calls_folder",
    "bench_folder",
    "is_launcher",
    "profile_folder",
    "room_for_calls",
]

#: What ``sglang-fl bisect`` sets for the processes that it starts: the folder for their answers.
BENCH = "SGLANG_FL_BISECT"
#: What ``sglang-fl profile`` sets for them, likewise.
PROFILE = "SGLANG_FL_PROFILE"
#: What ``sglang-fl tune`` sets for the engine that records: MiB of kept calls; one may take a quarter.
ROOM = "SGLANG_FL_KEEP_CALLS_MIB"
#: What it sets, too, for the engine that records ATen ops: the folder for their calls.
ATEN_CALLS = "SGLANG_FL_ATEN_CALLS"
#: The process that a user has started: SGLang's others inherit it.
LAUNCHER = "SGLANG_FL_LAUNCHER"


def bench_folder() -> Path | None:
    """Return the folder where ``sglang-fl bisect`` awaits answers, if it has started this process."""
    text = os.environ.get(BENCH)
    return Path(text) if text else None


def room_for_calls() -> int | None:
    """Return how many MiB of calls this process may keep, if ``sglang-fl tune`` has started it."""
    text = os.environ.get(ROOM)
    return int(text) if text else None


def aten_calls_folder() -> Path | None:
    """Return the folder where ``sglang-fl tune`` awaits calls of ATen ops, if it has started this process."""
    text = os.environ.get(ATEN_CALLS)
    return Path(text) if text else None


def ask_for_bench(folder: Path) -> None:
    """Have the processes that are started from now on load the plugin for ``sglang-fl bisect``."""
    os.environ[BENCH] = str(folder)


def profile_folder() -> Path | None:
    """Return the folder where ``sglang-fl profile`` awaits traces, if it has started this process."""
    text = os.environ.get(PROFILE)
    return Path(text) if text else None


def ask_for_profile(folder: Path) -> None:
    """Have the processes that are started from now on mark what they run, for ``sglang-fl profile``."""
    os.environ[PROFILE] = str(folder)


def is_launcher() -> bool:
    """Whether a user has started this process, and not SGLang; the first that asks says so to those below.

    A server may be started in a process that somebody's own program has made with ``multiprocessing``: such a
    process has not inherited the mark. A main process has its user, whatever it has inherited.
    """
    own = str(os.getpid())
    is_child = multiprocessing.current_process().name != "MainProcess"
    if not is_child or not os.environ.get(LAUNCHER):
        os.environ[LAUNCHER] = own
    return os.environ[LAUNCHER] == own

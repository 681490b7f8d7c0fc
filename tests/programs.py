"""Run Python programs to their end: with third-party modules loaded already, or as a user starts them."""

import functools
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tests.forked import Program, Server, is_read_with_sglang, run

__all__ = [
    "Run",
    "environment_of_forks",
    "finish",
    "finish_started",
    "load_ahead",
    "processes_with",
    "server_for",
    "server_of_forks",
    "server_with_sglang",
    "start_preloaded",
]

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Run:
    """How a process ended.

    Parameters
    ----------
    code : its exit code
    output : standard output and error
    result : the JSON object that it printed last, if any
    """

    code: int
    output: str
    result: dict | None


@functools.cache
def server_of_forks(path: tuple[Path, ...] = ()) -> Server:
    """Return the server of all programs that start with third-party modules loaded.

    All processes of one run of pytest share it: to load the modules takes 10 s of processor time.

    Parameters
    ----------
    path : folders with third-party modules that go before those of the environment
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", "")
    name = ":".join([run, *map(str, path)]) if run else ""
    return Server(environment_of_forks(), path=path, name=name)


def environment_of_forks() -> dict[str, str]:
    """Return the variables of the server, without settings of ours and of SGLang's."""
    ours = ("SGLANG_", "USE_FLAGGEMS", "PYTHONPATH")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**clean, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


@functools.cache
def server_with_sglang(simulated: str) -> Server:
    """Return the server of programs that start with SGLang loaded too, on a simulated chip or the CPU."""
    return server_of_forks().with_sglang(simulated)


def load_ahead(simulated: str) -> None:
    """Begin to load the server with SGLang while test files are read, before tests wait for it on one core.

    Only where processes share the tests, which are many then.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        server_with_sglang(simulated)


def server_for(environment: Mapping[str, str]) -> Server:
    """Return the server with SGLang loaded where this environment lets SGLang be as it is there.

    Not for programs that look at what is imported, and when.
    """
    if any(map(is_read_with_sglang, environment)):
        return server_of_forks()
    return server_with_sglang(environment.get("SGLANG_FL_SIMULATED", ""))


def finish(
    command: list[str], environment: Mapping[str, str], timeout: float, server: Server | None = None
) -> Run:
    """Run a Python program to its end, in a group of its own, with third-party modules loaded."""
    return ended(*run(server or server_of_forks(), command, environment, ROOT, timeout))


def start_preloaded(
    command: Sequence[str],
    output: BinaryIO,
    environment: Mapping[str, str],
    folder: Path,
    server: Server | None = None,
) -> Program:
    """Start a program with third-party modules loaded, where ``demo.server.start`` starts a process."""
    return (server or server_for(environment)).start(command, output.fileno(), environment, folder)


def finish_started(command: list[str], environment: Mapping[str, str], timeout: float) -> Run:
    """Run a process to its end, in a group of its own, started as a user starts it."""
    done = subprocess.run(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        start_new_session=True,
    )
    return ended(done.returncode, done.stdout)


def ended(code: int, output: str) -> Run:
    """Return how a process ended, with the last object that it printed behind ``RESULT``.

    Programs shut their engine down before: a line longer than a pipe takes at once could be cut by the log of
    another process.
    """
    lines = [line.removeprefix("RESULT ") for line in output.splitlines() if line.startswith("RESULT ")]
    return Run(code, output, json.loads(lines[-1]) if lines else None)


def processes_with(text: str) -> list[Path]:
    """Return the running processes whose command line contains ``text``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text in path.read_text(errors="replace"):
                found.append(path)
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    return found

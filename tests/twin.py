"""A twin of a process forks children for it, where it would execute Python anew and import all again.

The twin has modules loaded and does nothing else (``tests/preloaded.py``). It forks by way of a process in
between that ends at once. The process that asks has declared itself the reaper of such orphans, so the child
is its own: it waits for it and sends signals to it as to any other.
"""

import contextlib
import ctypes
import functools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from multiprocessing import util
from pathlib import Path
from typing import Any

__all__ = ["STANDARD", "TAKEN_ANEW", "TORCH", "Twin", "receive", "send", "started"]

#: What processes of tests import that run kernels and no engine.
TORCH = (
    *("torch", "torch.utils.backend_registration", "torch.testing", "torch.distributed", "torch.library"),
    *("numpy", "pydantic", "pydantic_settings", "typer", "rich.console", "yaml", "psutil", "setproctitle"),
    *("packaging.requirements", "packaging.specifiers", "concurrent.futures.process"),
    *("pytest", "_pytest.python"),
)
#: Beginnings of variables that these read when they are loaded, and of those that Python reads.
READ_ON_LOADING = ("OMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH_", "PYTORCH_", "LD_", "PYTHON")
#: Of these, what a process may have as it likes.
TAKEN_ANEW = ("PYTHONPATH", "PYTHONUNBUFFERED")
ROOT = Path(__file__).parents[1]
MESSAGE = 1 << 18
PR_SET_CHILD_SUBREAPER = 36
STANDARD = (0, 1, 2)


def send(connection: socket.socket, message: Any, descriptors: Sequence[int] = ()) -> None:
    """Send a message and copies of these descriptors."""
    socket.send_fds(connection, [json.dumps(message).encode()], list(descriptors))


def receive(connection: socket.socket) -> tuple[Any, list[int]]:
    """Return a message and descriptors; None: the other side has closed."""
    data, descriptors, _, _ = socket.recv_fds(connection, MESSAGE, 64)
    return json.loads(data) if data else None, descriptors


class Twin:
    """Forks children for this process, where it would execute Python anew.

    Parameters
    ----------
    connection : to the process that forks
    environment : under which that has loaded its modules
    """

    def __init__(self, connection: socket.socket, environment: Mapping[str, str]) -> None:
        self._connection = connection
        self._environment = environment
        self._lock = threading.Lock()
        self._fork_exec = subprocess._fork_exec  # type: ignore[attr-defined]
        self._spawn = util.spawnv_passfds

    @functools.cached_property
    def _loaded(self) -> dict[str, str | None]:
        names = {module.partition(".")[0] for module in TORCH}
        return {name: _origin(name, sys.path) for name in names}

    def fork(self, command: list[str], descriptors: Mapping[int, int], **more: Any) -> int:
        """Fork a child, which this process is to wait for; return its number.

        Parameters
        ----------
        command : of a Python
        descriptors : those that it has, by the number that they have there
        more : of the request

        Raises
        ------
        BrokenPipeError : the twin has been ended, as SGLang ends whatever runs below it when an engine stops
        """
        fixed = {"environment": dict(os.environ), "folder": str(Path.cwd()), "is_subprocess": False}
        request = {"command": command, "descriptors": list(descriptors), **fixed, **more}
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        with self._lock:
            prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                send(self._connection, request, list(descriptors.values()))
                child, _ = receive(self._connection)
                receive(self._connection)  # from now on it is the child of this process
            finally:
                prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        number: int = child
        return number

    def fork_exec(
        self, args: Any, programs: Any, close: Any, kept: Any, folder: Any, variables: Any, *others: Any
    ) -> int:
        """Stand in for ``subprocess._fork_exec``, which is private: CPython 3.11 to 3.13 have it alike.

        A Python whose libraries would be loaded alike is forked; whatever else is executed.
        """
        command = list(map(os.fsdecode, args))
        if variables is None:
            environment = dict(os.environ)
        else:
            environment = dict(os.fsdecode(variable).split("=", 1) for variable in variables)
        where = os.fsdecode(folder or Path.cwd())
        is_python = command[0] == sys.executable and command[1] in ("-c", "-m")
        is_special = any(other not in (None, -1) for other in others[10:16])  # group, user, ``preexec_fn``
        if not is_python or is_special or not self._loads_alike(environment, where):
            number: int = self._fork_exec(args, programs, close, kept, folder, variables, *others)
            return number
        standard = (others[0], others[3], others[5])
        descriptors = {n: n if given == -1 else given for n, given in zip(STANDARD, standard, strict=True)}
        descriptors |= {descriptor: descriptor for descriptor in kept if descriptor != others[7]}
        return self.fork(
            command,
            descriptors,
            environment=environment,
            folder=where,
            is_subprocess=True,
            has_own_session=bool(others[9]),
        )

    def spawn(self, path: Any, args: list[Any], passfds: Sequence[int]) -> int:
        """Stand in for ``multiprocessing.util.spawnv_passfds``; what is no child of its own is executed."""
        if "--multiprocessing-fork" in args:
            with contextlib.suppress(BrokenPipeError):
                return self.fork(list(map(os.fsdecode, args)), {n: n for n in sorted(passfds)})
        return self._spawn(path, args, passfds)

    def _loads_alike(self, environment: Mapping[str, str], folder: str) -> bool:
        """Whether a Python under these variables would load what is loaded here."""
        names = {name for name in (*environment, *self._environment) if name.startswith(READ_ON_LOADING)}
        if any(environment.get(name) != self._environment.get(name) for name in names - {*TAKEN_ANEW}):
            return False
        first = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
        return all(_origin(name, first) in (None, origin) for name, origin in self._loaded.items())


@contextlib.contextmanager
def started() -> Iterator[Twin]:
    """Start a twin of this process that has ``TORCH`` loaded; it ends with the context."""
    mine, twins = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    descriptor = twins.fileno()
    command = [sys.executable, "-m", "tests.preloaded", str(descriptor), "twin"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, pass_fds=[descriptor])
    twins.close()
    with mine:
        yield Twin(mine, environment)
    process.wait()


def _origin(name: str, folders: Sequence[str]) -> str | None:
    """Return the file of a top-level module in the first of the folders that has it."""
    found = PathFinder.find_spec(name, folders)
    return found.origin if found else None

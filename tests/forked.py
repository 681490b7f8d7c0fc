"""Programs that are forked from a server with modules loaded, which is ``tests/preloaded.py``."""

import contextlib
import copy
import errno
import hashlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.preloaded import THIRD_PARTY
from tests.twin import receive, send

__all__ = ["Program", "Server", "is_read_with_sglang", "run"]

#: Beginnings of variables that libraries read when they are loaded, and of those that Python reads.
READ_ON_LOADING = (
    *("OMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTORCH_", "TRITON_", "CUDA_", "HF_", "TRANSFORMERS_"),
    *("TOKENIZERS_", "LD_", "PYTHON"),
)
#: Of these, what a program may have as it likes; the last four are looked up when something is compiled.
TAKEN_ANEW = (
    *("PYTHONPATH", "PYTHONUNBUFFERED"),
    *("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH", "TRITON_PTXAS_BLACKWELL_PATH"),
)
#: Beginnings of variables that SGLang may read when it is loaded.
SGLANG_READS = ("SGL", "FLA_")
#: Of these, beginnings of what this project reads anew, and what SGLang reads when an engine starts.
READ_LATER = ("SGLANG_FL_", "SGLANG_FLAGGEMS_", "SGLANG_MAMBA_CONV_DTYPE", "SGLANG_CPU_OMP_THREADS_BIND")


def is_read_with_sglang(name: str) -> bool:
    """Return whether SGLang may have read this variable when it was loaded."""
    return name.startswith(SGLANG_READS) and not name.startswith(READ_LATER)


class Server:
    """A process with modules loaded, from which programs are forked; it ends with the last that uses it.

    Parameters
    ----------
    environment : of the server itself: what libraries read when they are loaded
    path : folders with third-party modules that go before those of the environment
    name : processes that give the same one share the server; empty: it is of this object alone
    """

    has_sglang = False

    def __init__(self, environment: Mapping[str, str], path: Sequence[Path] = (), name: str = "") -> None:
        self._environment = dict(environment)
        self._path = [str(folder) for folder in path]
        self.name = name or uuid.uuid4().hex
        self._control = _connected(self.name, self._begin)

    def _begin(self, listener: socket.socket) -> None:
        subprocess.Popen(
            [sys.executable, "-m", "tests.preloaded", str(listener.fileno())],
            cwd=Path(__file__).parents[1],
            env={**self._environment, "PYTHONPATH": os.pathsep.join(self._path)},
            stdin=subprocess.DEVNULL,
            pass_fds=(listener.fileno(),),
            start_new_session=True,
        )

    def with_sglang(self, simulated: str = "") -> "Server":
        """Return a server forked from this one that has SGLang loaded too, on a simulated chip or the CPU."""
        server = copy.copy(self)
        server.has_sglang = True
        server.name = f"{self.name}-sglang-{simulated}"

        def begin(listener: socket.socket) -> None:
            send(self._control, {"simulated": simulated}, [listener.fileno()])

        server._control = _connected(server.name, begin)
        return server

    def start(
        self, command: Sequence[str], output: int, environment: Mapping[str, str], folder: Path
    ) -> "Program":
        """Start a program.

        Parameters
        ----------
        command : ``[python, "-c", code, ...]``, ``[python, "-m", module, ...]`` or ``[python, script, ...]``
        output : a descriptor for standard output and error
        environment : all variables of the program
        folder : the working directory

        Raises
        ------
        ValueError : a variable differs that is read before the program starts
        """
        self._require_same(environment)
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {"command": list(command), "environment": dict(environment), "folder": str(folder)}
        with its:
            send(self._control, request, [its.fileno(), output])
        return Program(list(command), mine)

    def _require_same(self, environment: Mapping[str, str]) -> None:
        for name in sorted({*environment, *self._environment}):
            is_read = name.startswith(READ_ON_LOADING) or (self.has_sglang and is_read_with_sglang(name))
            its, wanted = self._environment.get(name), environment.get(name)
            if is_read and name not in TAKEN_ANEW and its != wanted:
                raise ValueError(f"{name}={wanted!r}: the server of forks has read {its!r} already")
        folders = {*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))}
        for folder in sorted(folders - {*self._path}):
            for name in {module.partition(".")[0] for module in THIRD_PARTY}:
                if Path(folder, name).exists():
                    raise ValueError(f"PYTHONPATH={folder!r}: its {name} is another than the one preloaded")


class Program:
    """A program that a server has forked; what is needed of ``subprocess.Popen``.

    Parameters
    ----------
    args : its command line
    connection : over which the server tells its process, and how that ended
    """

    def __init__(self, args: list[str], connection: socket.socket) -> None:
        self.args = args
        self.returncode: int | None = None
        self._connection = connection
        self.pid = self._hear()

    def _hear(self) -> int:
        message, _ = receive(self._connection)
        if message is None:
            raise RuntimeError("the server of forks has died; its error is in the output of these tests")
        number: int = message
        return number

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit code; that of a signal is negative.

        Raises
        ------
        subprocess.TimeoutExpired : it runs still
        """
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = self._hear()
            self._connection.close()
        return self.returncode


def run(
    server: Server, command: Sequence[str], environment: Mapping[str, str], folder: Path, timeout: float
) -> tuple[int, str]:
    """Run a program until it and all that have its output have ended; return exit code and output.

    Raises
    ------
    subprocess.TimeoutExpired : it took too long and was killed
    """
    ours, its = os.pipe()
    try:
        program = server.start(command, its, environment, folder)
    finally:
        os.close(its)
    deadline, output = time.monotonic() + timeout, b""
    with os.fdopen(ours, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0, deadline - time.monotonic()))[0]:
            part = pipe.read(1 << 16)
            if not part:
                return program.wait(timeout), output.decode(errors="replace")
            output += part
    os.killpg(program.pid, signal.SIGKILL)
    raise subprocess.TimeoutExpired(list(command), timeout, output)


def _connected(name: str, begin: Callable[[socket.socket], None]) -> socket.socket:
    """Return a connection to the server of a name; where there is none, begin one that has this listener.

    The kernel gives a name to one process at a time, and takes it back when the server has ended.
    """
    address = f"\0sglang-fl-forks-{hashlib.sha256(name.encode()).hexdigest()}"
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            if _is_given(address, listener):
                listener.listen()
                connection.connect(address)
                begin(listener)
                return connection
        with contextlib.suppress(ConnectionRefusedError):  # it does not listen yet, or has ended just now
            connection.connect(address)
            return connection
        time.sleep(0.01)


def _is_given(address: str, listener: socket.socket) -> bool:
    try:
        listener.bind(address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True

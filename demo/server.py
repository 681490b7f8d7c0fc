"""Run the real SGLang server as a child, wait until it is ready, and leave nothing behind."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

__all__ = ["Process", "Server", "ServerError", "free_port", "group_is_alive", "running", "serve", "start"]

PORTS = range(20000, 30000)
READY = "The server is fired up and ready to roll!"


class ServerError(Exception):
    """The server did not start, died or did not answer; the message ends with its last lines."""


class Process(Protocol):
    """What a server needs of ``subprocess.Popen``."""

    @property
    def pid(self) -> int:
        """Return the number of the process, and of its group."""
        ...

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        ...

    def wait(self) -> int:
        """Wait for its end and return its exit code."""
        ...


def start(command: Sequence[str], output: BinaryIO, environment: Mapping[str, str], folder: Path) -> Process:
    """Start a process that leads a group of its own."""
    return subprocess.Popen(
        command,
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )


def free_port() -> int:
    """Return a port that nobody listens on now.

    It is below those that Linux gives to a program which asks for any: SGLang asks for several before it
    listens on this one, and would now and then get the same.
    """
    for port in random.sample(PORTS, len(PORTS)):
        with contextlib.suppress(ServerError):
            _require_free(port)
            return port
    raise ServerError(f"no port from {PORTS.start} to {PORTS.stop - 1} is free")


class Server:
    """A running server.

    Parameters
    ----------
    process : its launcher, the leader of a process group of its own
    url : where it listens
    log : the file with its output
    """

    def __init__(self, process: Process, url: str, log: Path) -> None:
        self._process = process
        self.url = url
        self.log = log

    def post(self, path: str, body: Mapping[str, Any], timeout: float = 60) -> Any:
        """Send a JSON request and return the JSON answer.

        Raises
        ------
        ServerError : the server is gone, refuses, or does not answer within ``timeout`` seconds
        """
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise self._error(f"{path}: HTTP {error.code}: {error.read().decode()[:500]}") from error
        except OSError as error:
            raise self._error(f"{path}: {error}") from error

    def wait_until_ready(self, timeout: float, progress: Callable[[float], None]) -> None:
        """Wait for the end of SGLang's own warm-up.

        Parameters
        ----------
        timeout : seconds
        progress : called about twice a second with the seconds passed

        Raises
        ------
        ServerError : it died, or the time is up
        """
        start = time.monotonic()
        while READY not in self.log.read_text(errors="replace"):
            passed = time.monotonic() - start
            code = self._process.poll()
            if code is not None:
                raise self._error(f"the server ended with exit code {code} before it was ready")
            if passed > timeout:
                raise self._error(f"the server was not ready after {timeout:.0f} s")
            progress(passed)
            time.sleep(0.5)

    def wait(self) -> None:
        """Wait until the server ends by itself."""
        self._process.wait()

    def _error(self, what: str) -> ServerError:
        lines = self.log.read_text(errors="replace").splitlines()[-20:]
        return ServerError("\n".join([what, f"Last lines of {self.log}:", *(f"  {x}" for x in lines)]))

    def stop(self) -> None:
        """End the whole process group: a launcher that is killed leaves its children behind.

        Its launcher first gets what Ctrl-C sends, which it heeds at once; for SIGTERM SGLang looks every 5 s.
        """
        steps = ((os.kill, signal.SIGINT), (os.killpg, signal.SIGTERM), (os.killpg, signal.SIGKILL))
        for send, signal_number in steps:
            with contextlib.suppress(ProcessLookupError):
                send(self._process.pid, signal_number)
            deadline = time.monotonic() + 10
            while group_is_alive(self._process.pid) and time.monotonic() < deadline:
                self._process.poll()
                time.sleep(0.1)
        self._process.wait()


def group_is_alive(group: int) -> bool:
    """Return whether a process of a group runs: one that has ended may wait for init to take note of it."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, its_group, *_ = path.read_text().rpartition(")")[2].split()
            if int(its_group) == group and state != "Z":
                return True
    return False


@contextlib.contextmanager
def serve(
    model: Path,
    log: Path,
    *,
    arguments: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
    port: int | None = None,
    timeout: float = 300,
    progress: Callable[[float], None] = lambda passed: None,
) -> Iterator[Server]:
    """Start ``python -m sglang.launch_server`` and yield it once it is ready.

    Parameters
    ----------
    model : a checkpoint folder
    log : file for the server's output
    arguments : more of the launch line
    environment : variables to set beside those of this process
    port : default: any free one
    timeout : seconds until it must be ready
    progress : see ``Server.wait_until_ready``

    Raises
    ------
    ServerError : the port is in use, the server died, or the time is up
    """
    port = free_port() if port is None else port
    _require_free(port)
    command = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), *arguments]
    with running(command, port, log, environment=environment, timeout=timeout, progress=progress) as server:
        yield server


@contextlib.contextmanager
def running(
    command: Sequence[str],
    port: int,
    log: Path,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 300,
    progress: Callable[[float], None] = lambda passed: None,
) -> Iterator[Server]:
    """Run a command that starts a server and yield it once it is ready; as ``serve``.

    Parameters
    ----------
    command : what to run
    port : on which the server will listen
    folder : the working directory; default: that of this process

    Raises
    ------
    ServerError : the server died, or the time is up
    """
    with log.open("wb") as output:
        variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        process = start(command, output, variables, folder or Path.cwd())
    server = Server(process, f"http://127.0.0.1:{port}", log)
    try:
        server.wait_until_ready(timeout, progress)
        yield server
    finally:
        server.stop()


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServerError(f"port {port} is in use ({error.strerror}); choose another") from error

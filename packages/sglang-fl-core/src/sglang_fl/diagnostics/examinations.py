"""The conformance kit in several processes at the same time, one for each aspect of an implementation.

What a foreign kernel does to its process it does to no other one: after an access outside of a GPU's memory
every later call of the process fails, and a crash ends it.
"""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path

from sglang_fl.conformance import Verdict, verify_impl
from sglang_fl.errors import SglangFlError
from sglang_fl.ops import OPS
from sglang_fl.progress import Count
from sglang_fl.startup import configure
from sglang_fl.vendor import OpImpl

__all__ = ["verify_apart"]

#: A process that is forked could not use a GPU that this one has touched; a server that has PyTorch and has
#: touched no GPU forks in a moment what would take seconds to start.
SERVER = multiprocessing.get_context("forkserver")
#: Seconds for a process to end in, once it can answer no more.
PATIENCE = 10
#: So many bytes at the end of what a process has printed are looked at.
TAIL = 4096


def verify_apart(
    impls: Sequence[OpImpl],
    device: str,
    aspects: Sequence[str],
    jobs: int,
    say: Callable[[str], None],
) -> list[Verdict]:
    """Check implementations, each aspect in a process of its own; one that ends early is a fault.

    Parameters
    ----------
    impls : what is checked
    device : PyTorch's string, ``cuda``
    aspects : of ``sglang_fl.conformance.ASPECTS`` and ``STRESS``
    jobs : how many processes run at the same time, at least 1
    say : called with each aspect of each implementation before it is checked

    Returns
    -------
    list of Verdict : one for each implementation, in their order; ``host_us`` is the least of the processes'

    Raises
    ------
    SglangFlError : a process ended before it looked at its implementation
    """
    tasks = [(impl, aspect) for impl in impls for aspect in aspects]
    # Those with the most cases take longest: were one of them the last, the others would wait for it.
    by_length = sorted(tasks, key=lambda task: len(OPS[task[0].op].cases), reverse=True)
    count, found = Count(len(tasks)), dict[tuple[OpImpl, str], Verdict]()
    running: dict[tuple[OpImpl, str], _Examination] = {}
    _start_server()
    try:
        while len(found) < len(tasks):
            for task in by_length[len(found) + len(running) :][: jobs - len(running)]:
                impl, aspect = task
                say(count.next(f"{impl.op} {impl} {aspect}"))
                one = _Examination(impl, device, aspect)
                running[task] = one  # before it is started: Ctrl-C comes at any moment
                one.start()
            ready = wait([one.answer for one in running.values()])
            for one in [one for one in running.values() if one.answer in ready]:
                found[one.task] = one.verdict()
                del running[one.task]
    finally:
        for one in running.values():
            one.kill()
    return [_merged([found[impl, aspect] for aspect in aspects]) for impl in impls]


def _start_server() -> None:
    """Start the server such that it and its processes leave Ctrl-C in a terminal to this process."""
    SERVER.set_forkserver_preload([__name__])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


class _Examination:
    """The look at one aspect of an implementation, in a process of its own.

    ``answer`` can be read once there is one, or none will come.
    """

    def __init__(self, impl: OpImpl, device: str, aspect: str) -> None:
        self.task = impl, aspect
        self._folder = tempfile.TemporaryDirectory()
        self._output = Path(self._folder.name, "output")
        self.answer, self._send = SERVER.Pipe(duplex=False)
        given = self._send, (impl, device, aspect), dict(os.environ), self._output
        self._process = SERVER.Process(target=_examine, args=given)

    def start(self) -> None:
        """Begin."""
        self._process.start()
        self._send.close()

    def verdict(self) -> Verdict:
        """Return what came of it.

        Raises
        ------
        SglangFlError : the process ended before it looked at the implementation, whose fault that is not
        """
        impl, aspect = self.task
        try:
            verdict: Verdict = self.answer.recv()
        except EOFError:
            self._process.join(PATIENCE)
            fault = f"{impl.op} {impl}, {aspect}: {_end(self._process.exitcode, self._output)}"
            if not _begun(self._output).exists():
                raise SglangFlError(f"before it was looked at: {fault}") from None
            verdict = Verdict(impl.op, str(impl), impl.target, {aspect: [fault]})
        self.kill()
        return verdict

    def kill(self) -> None:
        """End the process: the kernel may hang, or have left threads that go on."""
        if self._process.pid is not None:
            self._process.kill()
            self._process.join()
        self.answer.close()
        self._folder.cleanup()


def _examine(
    send: Connection, what: tuple[OpImpl, str, str], environment: Mapping[str, str], output: Path
) -> None:
    """Run in the process: look at one aspect, and send what came of it.

    The server has the environment of its own start.
    """
    if not output.parent.exists():
        return  # nobody waits for it any more
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with send:
        configure()  # a simulated chip is a device once this is done
        _begun(output).touch()
        impl, device, aspect = what
        send.send(verify_impl(impl, device, (aspect,)))


def _begun(output: Path) -> Path:
    """Return the file that is there once the implementation is looked at."""
    return output.with_name("begun")


def _end_with_parent() -> None:
    """End this process, whatever its kernel does, when the one that waits for its answer has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _end(code: int | None, output: Path) -> str:
    """Say how a process ended, None for one that has not, and what it said last."""
    how = "went on" if code is None else f"ended with code {code}"
    if code is not None and code < 0:
        how = f"ended with signal {signal.Signals(-code).name}"
    lines = _tail(output).split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"its process {how}, without an answer" + (f": {last}" if last else "")


def _tail(output: Path) -> str:
    if not output.exists():
        return ""
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - TAIL))
        return file.read().decode(errors="replace")


def _merged(parts: Sequence[Verdict]) -> Verdict:
    """Return one verdict of the aspects that an implementation was looked at in."""
    times = [part.host_us for part in parts if part.host_us is not None]
    return replace(
        parts[0],
        faults={aspect: found for part in parts for aspect, found in part.faults.items()},
        not_checked=list(dict.fromkeys(reason for part in parts for reason in part.not_checked)),
        graphs=sum(part.graphs for part in parts),
        digest="".join(part.digest for part in parts),  # of the one aspect that has it
        host_us=min(times, default=None),
    )

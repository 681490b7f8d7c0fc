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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from sglang_fl.conformance import Verdict, verify_impl
from sglang_fl.ops import OPS
from sglang_fl.progress import Count
from sglang_fl.startup import configure
from sglang_fl.vendor import OpImpl

__all__ = ["verify_apart"]

#: A process that is forked could not use a GPU that this one has touched; a server that has PyTorch and has
#: touched no GPU forks in a moment what would take seconds to start.
SERVER = multiprocessing.get_context("forkserver")


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
    """
    tasks = [(impl, aspect) for impl in impls for aspect in aspects]
    # Those with the most cases take longest: were one of them the last, the others would wait for it.
    by_length = sorted(tasks, key=lambda task: len(OPS[task[0].op].cases), reverse=True)
    count, lock = Count(len(tasks)), threading.Lock()

    def run(impl: OpImpl, aspect: str) -> Verdict:
        with lock:
            say(count.next(f"{impl.op} {impl} {aspect}"))
        return _in_a_process(impl, device, aspect)

    SERVER.set_forkserver_preload([__name__])
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = {task: pool.submit(run, *task) for task in by_length}
        found = {task: future.result() for task, future in futures.items()}
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.kill()
        raise
    finally:
        pool.shutdown()
    return [_merged([found[impl, aspect] for aspect in aspects]) for impl in impls]


def _in_a_process(impl: OpImpl, device: str, aspect: str) -> Verdict:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "output")
        receive, send = SERVER.Pipe(duplex=False)
        what = impl, device, aspect
        process = SERVER.Process(target=_examine, args=(send, what, dict(os.environ), output))
        process.start()
        send.close()
        verdict: Verdict | None = None
        try:
            verdict = receive.recv()
        except EOFError:
            pass  # it ended without an answer: told below
        finally:
            receive.close()
            process.join()
        if verdict:
            return verdict
        fault = f"{impl.op} {impl}, {aspect}: {_end(process.exitcode, output)}"
        return Verdict(impl.op, str(impl), impl.target, {aspect: [fault]})


def _examine(
    send: Connection, what: tuple[OpImpl, str, str], environment: Mapping[str, str], output: Path
) -> None:
    """Run in the process: look at one aspect, and send what came of it.

    The server has the environment of its own start.
    """
    os.environ.clear()
    os.environ.update(environment)
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    configure()  # a simulated chip is a device once this is done
    impl, device, aspect = what
    send.send(verify_impl(impl, device, (aspect,)))
    send.close()


def _end(code: int | None, output: Path) -> str:
    """Say how a process ended, and what it said last."""
    how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"code {code}"
    lines = output.read_text(errors="replace").split("\n") if output.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"its process ended with {how}" + (f": {last}" if last else "")


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

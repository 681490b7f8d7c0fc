"""tp > 1 hangs at start-up: really run a small all-reduce over as many processes, within a time limit."""

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from sglang_fl.diagnostics.doctor.child import end, last_line, start
from sglang_fl.diagnostics.doctor.configured import configured
from sglang_fl.diagnostics.doctor.devices import count
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem, unknown
from sglang_fl.diagnostics.doctor.launch import Launch

__all__ = ["collective"]

RANK = "sglang_fl.diagnostics.doctor.collective_rank"
#: The stage of a rank that has not said anything yet.
IMPORTING = "Python and PyTorch are being imported"


@dataclass(frozen=True)
class _Rank:
    """A running rank; what it writes goes to files, so that a full pipe cannot stop it."""

    number: int
    process: "subprocess.Popen[str]"
    output: IO[str]
    errors: IO[str]

    def stage(self) -> str:
        """Return how far it came."""
        lines = _read(self.output).splitlines()
        return lines[-1] if lines else IMPORTING

    def error(self) -> str:
        """Return its last words."""
        return last_line(_read(self.errors))


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def collective(launch: Launch) -> Iterator[Finding]:
    """Do as many processes as there will be ranks on this machine come to a common sum?"""
    configuration = configured()
    if configuration is None or launch.local_ranks < 2:
        return
    device_type = configuration.registry.vendor.device_type
    if device_type != "cpu" and count(device_type) < launch.local_ranks:
        return  # told by the check of the devices
    start = time.monotonic()
    ranks: list[_Rank] = []
    port = _free_port()
    try:
        for number in range(launch.local_ranks):
            ranks.append(_start(number, launch.local_ranks, port, device_type))
        is_over = _wait(ranks, start + launch.probe_seconds)
        yield _judged(ranks, launch, device_type, is_over, time.monotonic() - start)
    finally:
        for rank in ranks:
            end(rank.process)
            rank.process.wait()
            rank.output.close()
            rank.errors.close()


def _start(number: int, ranks: int, port: int, device_type: str) -> _Rank:
    output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by collective, when the rank has ended
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
    arguments = ("-m", RANK, str(number), str(ranks), str(port), device_type)
    process = start(arguments, {"OMP_NUM_THREADS": "1"}, output, errors)
    return _Rank(number, process, output, errors)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(ranks: list[_Rank], deadline: float) -> bool:
    """Wait until all have ended or one has failed; return False where time runs out before."""
    while time.monotonic() < deadline:
        codes = [rank.process.poll() for rank in ranks]
        if None not in codes or any(codes):
            return True
        time.sleep(0.05)
    return False


def _judged(ranks: list[_Rank], launch: Launch, device_type: str, is_over: bool, seconds: float) -> Finding:
    what = f"all-reduce over {len(ranks)} processes"
    failed = [rank for rank in ranks if rank.process.returncode]
    stages = "; ".join(f"rank {rank.number}: {rank.stage()}" for rank in ranks)
    if failed:
        text = f"rank {failed[0].number} failed after '{failed[0].stage()}': {failed[0].error()}"
        return problem(what, text, _remedy(device_type))
    importing = [rank for rank in ranks if rank.stage() == IMPORTING]
    if not is_over and importing:
        text = f"not known: after {launch.probe_seconds:g} s the ranks have not begun ({stages})"
        return unknown(what, text, f"give it more time: --probe-seconds {2 * launch.probe_seconds:g}")
    if not is_over:
        text = f"hangs: not done after {launch.probe_seconds:g} s ({stages})"
        return problem(what, text, _remedy(device_type))
    return ok(what, f"right, on {device_type}, in {seconds:.1f} s")


def _remedy(device_type: str) -> str:
    if device_type == "cpu":
        return "unset GLOO_SOCKET_IFNAME and NCCL_*, and see that 127.0.0.1 is not behind a firewall"
    return (
        "ask again with NCCL_DEBUG=INFO to see where it waits; try NCCL_P2P_DISABLE=1 (devices that cannot "
        "reach each other), NCCL_SHM_DISABLE=1 (a small /dev/shm), NCCL_IB_DISABLE=1"
    )

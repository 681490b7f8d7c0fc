"""tp > 1 hangs at start-up: are there as many devices as ranks, and does each rank see its own?"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from sglang_fl.diagnostics.doctor.configured import configured
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem
from sglang_fl.diagnostics.doctor.foreign import variable
from sglang_fl.diagnostics.doctor.launch import Launch

__all__ = ["count", "devices", "numa"]

#: Which variable hides devices from a process.
_VISIBLE = {
    "cuda": "CUDA_VISIBLE_DEVICES",
    "npu": "ASCEND_RT_VISIBLE_DEVICES",
    "mlu": "MLU_VISIBLE_DEVICES",
}


def count(device_type: str) -> int:
    """Return how many devices of a type PyTorch sees."""
    module = getattr(torch, device_type, None)
    return int(module.device_count()) if module is not None else 0


def devices(launch: Launch) -> Iterator[Finding]:
    """Does each rank of this machine have a device?"""
    configuration = configured()
    if configuration is None or configuration.registry.vendor.device_type == "cpu":
        return
    device_type, wanted = configuration.registry.vendor.device_type, launch.local_ranks
    found = count(device_type)
    if found >= wanted:
        yield ok("devices", f"{found} of type {device_type}, {wanted} needed")
        return
    name = _VISIBLE.get(device_type, "")
    visible = variable(name)
    hidden = f"; {name}={visible!r} shows only these" if visible else ""
    remedy = f"--tp {found}" if found else "check the driver: PyTorch sees no device"
    widen = f", or name {wanted} devices in {name}" if visible else ""
    text = f"--tp needs {wanted} of type {device_type} on this machine, PyTorch sees {found}{hidden}"
    yield problem("devices", text, f"{remedy}{widen}")


def numa(launch: Launch) -> Iterator[Finding]:
    """On a CPU: does each rank have cores of its own? SGLang gives a NUMA node to each."""
    configuration = configured()
    if configuration is None or configuration.registry.vendor.device_type != "cpu" or launch.local_ranks < 2:
        return
    name = "SGLANG_CPU_OMP_THREADS_BIND"
    given, ranks = variable(name), launch.local_ranks
    cores = sorted(os.sched_getaffinity(0))
    lists = "|".join(_share(cores, rank, ranks) for rank in range(ranks))
    nodes = max(1, len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))))
    if given is None and nodes < ranks:
        text = (
            f"{name} is not set: SGLang then needs a NUMA node for each of {ranks} ranks, and {nodes} is here"
        )
        yield problem("cores", text, f'give a list of cores to each: {name}="{lists}"')
    elif given is None:
        yield ok("cores", f"{nodes} NUMA nodes for {ranks} ranks")
    elif len(given.split("|")) != ranks:
        text = f"{name}={given!r} has {len(given.split('|'))} lists of cores for {ranks} ranks"
        yield problem("cores", text, f'write one list for each rank: {name}="{lists}"')
    else:
        yield ok("cores", f"{name} has a list for each rank")


def _share(cores: list[int], rank: int, ranks: int) -> str:
    own = cores[rank * len(cores) // ranks : (rank + 1) * len(cores) // ranks] or cores[:1]
    return f"{own[0]}-{own[-1]}" if len(own) > 1 else str(own[0])

"""One rank of the probe: meets the others, adds up one number on each backend, says how far it came.

Run as ``python -m``, by ``collective``: rank, ranks, port, device type.
"""

import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["main"]


def main(rank: int, ranks: int, port: int, device_type: str) -> None:
    """Take part in an all-reduce over gloo, and over the device's own backend."""
    _say("started")
    device = torch.device(device_type if device_type == "cpu" else f"{device_type}:{rank}")
    if device_type != "cpu":
        getattr(torch, device_type).set_device(rank)
    backend = dist.get_default_backend_for_device(device_type)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group(
        backend, init_method=address, rank=rank, world_size=ranks, timeout=timedelta(minutes=10)
    )
    _say("joined")
    _add_up(ranks, device, None)
    _say(f"added up over {backend}")
    if backend != "gloo":
        _add_up(ranks, torch.device("cpu"), dist.new_group(backend="gloo"))
        _say("added up over gloo")
    dist.destroy_process_group()
    _say("done")


def _add_up(ranks: int, device: torch.device, group: Any) -> None:
    number = torch.full((1024,), float(dist.get_rank() + 1), device=device)
    dist.all_reduce(number, group=group)
    expected = ranks * (ranks + 1) / 2
    if not bool((number == expected).all()):
        raise ArithmeticError(f"the sum is {number[0].item()}, not {expected}")


def _say(stage: str) -> None:
    sys.stdout.write(f"{stage}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])

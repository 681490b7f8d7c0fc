"""The compiled part of the simulated chip, as Python calls it."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

__all__ = [
    "MOST_DEVICES",
    "capacity",
    "chip_copy",
    "device_count",
    "host_alias",
    "load",
    "note",
    "peak",
    "record",
    "reset_peak",
    "used",
]

MOST_DEVICES = 16  # kMostDevices of source/memory.h

_library: ctypes.CDLL


def load(path: Path, name: str, devices: int, memory: int) -> None:
    """Load the library, which registers allocator, guard and kernels with PyTorch."""
    global _library
    torch.ops.load_library(str(path))  # type: ignore[no-untyped-call] # PyTorch's
    _library = ctypes.CDLL(str(path))
    for function in (_library.simulated_used, _library.simulated_peak, _library.simulated_capacity):
        function.restype = ctypes.c_int64
    _library.simulated_configure(name.encode(), ctypes.c_int(devices), ctypes.c_int64(memory))


def capacity() -> int:
    """Return the bytes of each device."""
    return int(_library.simulated_capacity())


def device_count() -> int:
    """Return the number of devices."""
    return int(_library.simulated_devices())


def used(device: int) -> int:
    """Return the bytes allocated on a device."""
    return int(_library.simulated_used(device))


def peak(device: int) -> int:
    """Return the most bytes that were allocated on a device at one time."""
    return int(_library.simulated_peak(device))


def reset_peak(device: int) -> None:
    """Let the peak begin at what is allocated now."""
    _library.simulated_reset_peak(device)


def record(descriptor: int) -> None:
    """Append what the chip is asked for to an open file from now on."""
    _library.simulated_record(descriptor)


def note(name: str) -> None:
    """Add a name to the record, if there is one."""
    _library.simulated_note(name.encode())


def host_alias(tensor: Tensor) -> Tensor:
    """Return a chip tensor as a CPU tensor over the same bytes."""
    alias: Tensor = torch.ops.sglang_fl_simulated.host_alias(tensor)
    return alias


def chip_copy(tensor: Tensor, device: int) -> Tensor:
    """Return a copy of a CPU tensor on the chip, of which the record says nothing."""
    copy: Tensor = torch.ops.sglang_fl_simulated.chip_copy(tensor, device)
    return copy

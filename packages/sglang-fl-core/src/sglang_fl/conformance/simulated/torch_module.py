"""The module ``torch.<device_type>``: what programs ask of an accelerator beside its tensors."""

import time
import types
from dataclasses import dataclass
from typing import Any

import torch

from sglang_fl.conformance.simulated import native
from sglang_fl.conformance.simulated.graph import Capture, Graph, capturing

__all__ = ["make"]

Device = torch.device | int | str | None


def _name() -> str:
    return torch._C._get_privateuse1_backend_name()


def _index(device: Device = None) -> int:
    """Return a device's number; that of the current one where it is left open."""
    number = device if device is None or isinstance(device, int) else torch.device(device).index
    return torch.accelerator.current_device_index() if number is None or number < 0 else int(number)


class Stream(torch.Stream):
    """A stream in name: its work is done when it is given."""

    def __new__(cls, device: Device = None, priority: int = 0, **identity: int) -> "Stream":
        """Make a new stream, or the one that PyTorch identifies by three numbers."""
        if identity:
            return super().__new__(cls, **identity)
        return super().__new__(cls, device=torch.device(_name(), _index(device)), priority=priority)


class Event(torch.Event):
    """A moment in a stream."""

    def __new__(
        cls, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> "Event":
        """Make an event that was not recorded yet."""
        return super().__new__(
            cls, device=_name(), enable_timing=enable_timing, blocking=blocking, interprocess=interprocess
        )

    def record(self, stream: torch.Stream | None = None) -> None:
        """Take the time."""
        self.recorded = time.perf_counter()
        super().record(stream)

    def elapsed_time(self, end_event: "torch.Event") -> float:
        """Return the milliseconds to another event; PyTorch's own refuses classes derived from its own."""
        if not isinstance(end_event, Event):
            return super().elapsed_time(end_event)
        return (end_event.recorded - self.recorded) * 1e3


class StreamContext:
    """Makes a stream the current one; None changes nothing."""

    def __init__(self, stream: torch.Stream | None) -> None:
        self.stream = stream
        self._former: torch.Stream | None = None

    def __enter__(self) -> torch.Stream | None:
        if self.stream is not None:
            self._former = torch.accelerator.current_stream(self.stream.device)
            torch.accelerator.set_stream(self.stream)
        return self.stream

    def __exit__(self, *exception: object) -> None:
        if self._former is not None:
            torch.accelerator.set_stream(self._former)


class CurrentDevice:
    """Makes a device the current one."""

    def __init__(self, device: Device) -> None:
        self.idx = _index(device)
        self._former = self.idx

    def __enter__(self) -> None:
        self._former = _index()
        set_device(self.idx)

    def __exit__(self, *exception: object) -> None:
        set_device(self._former)


@dataclass(frozen=True)
class DeviceProperties:
    """What a device says of itself."""

    name: str
    total_memory: int
    major: int = 0
    minor: int = 0
    multi_processor_count: int = 1


def is_available() -> bool:
    """Return True."""
    return native.device_count() > 0


def set_device(device: Device) -> None:
    """Make a device the current one."""
    torch.accelerator.set_device_index(_index(device))


def get_device_properties(device: Device = None) -> DeviceProperties:
    """Return what a device says of itself."""
    return DeviceProperties(get_device_name(device), mem_get_info(device)[1])


def get_device_name(device: Device = None) -> str:
    """Return a name that nobody takes for a real chip's."""
    return f"simulated {_name()}"


def get_device_capability(device: Device = None) -> tuple[int, int]:
    """Return the lowest capability there is."""
    return 0, 0


def synchronize(device: Device = None) -> None:
    """Do nothing: all work is done when it is given."""


def current_stream(device: Device = None) -> torch.Stream:
    """Return the current stream of a device."""
    return torch.accelerator.current_stream(torch.device(_name(), _index(device)))


def default_stream(device: Device = None) -> torch.Stream:
    """Return the stream that a device begins with."""
    key = torch._C._autograd.DeviceType.PrivateUse1
    return Stream(stream_id=0, device_index=_index(device), device_type=key.value)


def memory_allocated(device: Device = None) -> int:
    """Return the bytes allocated on a device."""
    return native.used(_index(device))


def max_memory_allocated(device: Device = None) -> int:
    """Return the most bytes that were allocated at one time."""
    return native.peak(_index(device))


def reset_peak_memory_stats(device: Device = None) -> None:
    """Let the peak begin at what is allocated now."""
    native.reset_peak(_index(device))


def mem_get_info(device: Device = None) -> tuple[int, int]:
    """Return the free and all bytes of a device."""
    total = native.capacity()
    return total - memory_allocated(device), total


def empty_cache() -> None:
    """Do nothing: nothing is cached."""


def manual_seed(seed: int) -> None:
    """Seed the generator, which is the CPU's."""
    torch.default_generator.manual_seed(seed)


def get_rng_state(device: Device = None) -> torch.Tensor:
    """Return the generator's state."""
    return torch.default_generator.get_state()


def set_rng_state(state: torch.Tensor, device: Device = None) -> None:
    """Set the generator's state."""
    torch.default_generator.set_state(state)


def get_amp_supported_dtype() -> list[torch.dtype]:
    """Return the dtypes that ``torch.autocast`` accepts; nothing is cast."""
    return [torch.float16, torch.bfloat16]


def is_bf16_supported() -> bool:
    """Return True."""
    return True


def _nothing(*ignored: object) -> None:
    """Stand for what has nothing to do here."""


#: Names of the module's members; those that only have to exist come last.
MEMBERS: dict[str, Any] = {
    "Stream": Stream,
    "Event": Event,
    "StreamContext": StreamContext,
    "stream": StreamContext,
    "device": CurrentDevice,
    "is_available": is_available,
    "device_count": native.device_count,
    "current_device": _index,
    "set_device": set_device,
    "get_device_properties": get_device_properties,
    "get_device_name": get_device_name,
    "get_device_capability": get_device_capability,
    "synchronize": synchronize,
    "current_stream": current_stream,
    "default_stream": default_stream,
    "set_stream": torch.accelerator.set_stream,
    "memory_allocated": memory_allocated,
    "memory_reserved": memory_allocated,
    "max_memory_allocated": max_memory_allocated,
    "max_memory_reserved": max_memory_allocated,
    "reset_peak_memory_stats": reset_peak_memory_stats,
    "mem_get_info": mem_get_info,
    "empty_cache": empty_cache,
    "ipc_collect": _nothing,
    "manual_seed": manual_seed,
    "manual_seed_all": manual_seed,
    "get_rng_state": get_rng_state,
    "set_rng_state": set_rng_state,
    "graph": Capture,
    "is_current_stream_capturing": lambda: capturing() is not None,
    "get_amp_supported_dtype": get_amp_supported_dtype,
    "is_bf16_supported": is_bf16_supported,
    "is_initialized": is_available,
    "init": _nothing,
    "_lazy_init": _nothing,
    "_is_in_bad_fork": lambda: False,
}


class ChipModule(types.ModuleType):
    """A module that puts into the record what is asked of it, also what it has not."""

    def __getattribute__(self, name: str) -> Any:
        """Return a member."""
        if not name.startswith("__"):
            native.note(f"{super().__getattribute__('__name__')}.{name}")
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        title = self.__name__
        if not name.startswith("__"):
            native.note(f"{title}.{name} missing")
        raise AttributeError(
            f"module {title!r} has no attribute {name!r}: the simulated chip does not know it"
        )


def make(device_type: str) -> types.ModuleType:
    """Return the module for a device of this name."""
    module = ChipModule(f"torch.{device_type}", __doc__)
    vars(module).update(MEMBERS, **{f"{device_type.upper()}Graph": Graph})
    return module

"""Emulated kernels of a vendor library: functions of CPU tensors that run on the chip's bytes."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from sglang_fl.conformance.simulated import native
from sglang_fl.conformance.simulated.graph import capturing

__all__ = ["emulated"]

Function = TypeVar("Function", bound=Callable[..., Any])


def emulated(function: Function) -> Function:
    """Run a function of CPU tensors as a kernel of the simulated chip.

    It takes the chip's tensors, may write them in place, and returns them; tensors of another device are
    refused, as by the vendor's own kernels. What PyTorch does inside is not put into the record: on the chip
    this is one kernel.
    """

    def run(*arguments: Any, **options: Any) -> Any:
        call = _Call(function.__name__)
        hosts = [call.to_host(argument) for argument in arguments]
        named = {name: call.to_host(value) for name, value in options.items()}
        with torch.no_grad():
            return call.to_chip(function(*hosts, **named))

    @functools.wraps(function)
    def kernel(*arguments: Any, **options: Any) -> Any:
        capture = capturing()
        return run(*arguments, **options) if capture is None else capture.call(run, arguments, options)

    return kernel  # type: ignore[return-value] # it has the function's signature


class _Call:
    """One call of a kernel: which CPU tensor stands for which chip tensor."""

    def __init__(self, kernel: str) -> None:
        self._kernel = kernel
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._device: int | None = None

    def to_host(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self.to_host(item) for item in value)
        return self._alias(value) if isinstance(value, Tensor) else value

    def _alias(self, tensor: Tensor) -> Tensor:
        name = torch._C._get_privateuse1_backend_name()
        if tensor.device.type != name:
            raise RuntimeError(f"simulated {name}: {self._kernel} got a tensor on {tensor.device}")
        if self._device not in (None, tensor.device.index):
            raise RuntimeError(f"simulated {name}: {self._kernel} got tensors on several devices")
        self._device = tensor.device.index
        host = native.host_alias(tensor)
        self._pairs.append((tensor, host))
        return host

    def to_chip(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self.to_chip(item) for item in value)
        if not isinstance(value, Tensor):
            return value
        for chip, host in self._pairs:
            if value is host:
                return chip
        return native.chip_copy(value, self._device or 0)

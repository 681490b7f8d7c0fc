"""Switches ATen ops to a vendor's kernels and back, each by itself."""

import inspect
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from sglang_fl.aten.names import find_all
from sglang_fl.aten.record_log import Recording
from sglang_fl.vendor import AtenKernel

__all__ = ["AtenSwitchboard"]

logger = logging.getLogger(__name__)

_Library: Any = torch.library.Library  # PyTorch has no types for it
#: To PyTorch 2.9 that is how it is, and cannot be asked for.
_REFUSE_OVERRIDE = (
    {"allow_override": False} if "allow_override" in inspect.signature(_Library.impl).parameters else {}
)


class AtenSwitchboard:
    """One switch for each ATen op of a device, all of them off at first.

    Each op has a library of its own: whoever destroys that gets PyTorch's kernel back, the very same.

    Parameters
    ----------
    kernels : the vendor's
    device_type : PyTorch's string for the device whose tensors they are for
    record : gets each call; None costs nothing
    """

    def __init__(
        self, kernels: Sequence[AtenKernel], device_type: str, record: Recording | None = None
    ) -> None:
        self._kernels = tuple(kernels)
        self._dispatch_key: str = torch._C._dispatch_key_for_device(device_type)
        self._record = record
        self._libraries: dict[str, Any] = {}

    @property
    def is_on(self) -> tuple[str, ...]:
        """The ops that are on, as ATen calls them, in the vendor's order."""
        return tuple(kernel.overload for kernel in self._kernels if kernel.overload in self._libraries)

    def switch_on(self, names: Iterable[str]) -> dict[str, str]:
        """Let the vendor's kernels run these ops.

        What is on already stays as it is.

        Parameters
        ----------
        names : in either spelling

        Returns
        -------
        dict : the ops that could not be switched, with the reason: PyTorch has no such op, or another
            library has replaced it (SGLang's batch-invariant mode does), which is left alone

        Raises
        ------
        SettingsError : a name that means no kernel; nothing is switched then
        """
        refused = {}
        for kernel in self._meant(names):
            if kernel.overload not in self._libraries:
                reason = self._register(kernel)
                if reason:
                    refused[kernel.overload] = reason
        return refused

    def switch_off(self, names: Iterable[str]) -> None:
        """Give these ops back to PyTorch. What is off already stays so.

        Raises
        ------
        SettingsError : as ``switch_on``
        """
        for kernel in self._meant(names):
            library = self._libraries.pop(kernel.overload, None)
            if library is not None:
                library._destroy()

    def _meant(self, names: Iterable[str]) -> list[AtenKernel]:
        meant = find_all(names, self._kernels, "ATen ops")
        wanted = {op.overload for ops in meant.values() for op in ops}
        return [kernel for kernel in self._kernels if kernel.overload in wanted]

    def _register(self, kernel: AtenKernel) -> str | None:
        """Register a kernel; say why that was refused, or None."""
        if not _is_op(kernel.overload):
            return "this PyTorch has no such op"
        library = _Library("aten", "IMPL")
        function = self._record.recording(kernel) if self._record else kernel.function
        try:
            library.impl(kernel.overload, function, self._dispatch_key, **_REFUSE_OVERRIDE)
        except RuntimeError as error:
            library._destroy()
            logger.debug("%s cannot be replaced: %s", kernel, error)
            return str(error).partition("\n")[0]
        self._libraries[kernel.overload] = library
        return None


def _is_op(overload: str) -> bool:
    """Whether PyTorch has an op; it would take a kernel for one that does not exist without a word."""
    name, _, variant = overload.partition(".")
    packet = getattr(torch.ops.aten, name, None)
    return packet is not None and (variant or "default") in packet.overloads()

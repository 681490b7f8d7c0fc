"""The SGLang platform for MLUs, which SGLang has not itself (up to 0.5.23).

It carries the methods of all supported releases. SGLang instantiates it while ``sglang`` itself is half
imported: nothing here may import more of SGLang than its platform interface before a method is called.

Graphs are left off: SGLang captures none with the attention that runs here, and nobody has captured one on a
chip with this package yet.
"""

from typing import Any

import torch
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

from sglang_fl.platform import LoadsPlugins, NotCuda, SGLangPools, TorchNative

__all__ = ["MluPlatform"]

DEVICE = "mlu"


def _mlu() -> Any:
    """Return ``torch.mlu``, which ``torch_mlu`` adds."""
    return torch.get_device_module(DEVICE)


class MluPlatform(LoadsPlugins, TorchNative, SGLangPools, NotCuda, SRTPlatform):  # type: ignore[misc]
    """A Cambricon MLU: PyTorch attention, no graphs, collectives over CNCL."""

    _enum = PlatformEnum.OOT
    device_name = DEVICE
    device_type = DEVICE

    # The device

    def get_device(self, device_id: int = 0) -> str:
        """Return ``mlu``; SGLang adds the number itself."""
        return DEVICE

    def set_device(self, device: torch.device) -> None:
        """Make a device the current one."""
        _mlu().set_device(device)

    def get_device_name(self, device_id: int = 0) -> str:
        """Return what the chip calls itself."""
        return str(_mlu().get_device_name(device_id))

    def get_device_uuid(self, device_id: int = 0) -> str:
        """Return the chip's identifier; its name and number where PyTorch does not tell one."""
        uuid = getattr(_mlu().get_device_properties(device_id), "uuid", None)
        return str(uuid) if uuid else f"{self.get_device_name(device_id)}-{device_id}"

    def get_device_capability(self, device_id: int = 0) -> Any:
        """Return None: the numbers that torch_mlu gives are not those that SGLang asks for."""
        return None

    def synchronize(self) -> None:
        """Wait for the current device."""
        _mlu().synchronize()

    # Memory, in bytes

    def get_device_total_memory(self, device_id: int = 0) -> int:
        """Return all memory of a device."""
        return int(_mlu().mem_get_info(device_id)[1])

    def get_current_memory_usage(self, device: torch.device | None = None) -> int:
        """Return what is in use on a device, by other processes too."""
        free, total = _mlu().mem_get_info(device)
        return int(total - free)

    def get_available_memory(self, device_id: int = 0) -> tuple[int, int]:
        """Return free and all memory of a device."""
        free, total = _mlu().mem_get_info(device_id)
        return int(free), int(total)

    def empty_cache(self) -> None:
        """Give memory that PyTorch keeps back to the device."""
        _mlu().empty_cache()

    def is_pin_memory_available(self, device: Any = None) -> bool:
        """Return True, but not for a copy that stays on the host."""
        return device is None or torch.device(device).type != "cpu"

    # Collectives

    def get_torch_distributed_backend_str(self) -> str:
        """Return ``cncl``, which torch_mlu registers."""
        return "cncl"

    def get_group_coordinator_device(self, local_rank: int) -> torch.device:
        """Return the device of a rank; from 0.5.23 on."""
        return torch.device(DEVICE, local_rank)

    # What SGLang runs

    def get_default_attention_backend(self) -> str:
        """Return ``torch_native``, the one backend that needs no kernels."""
        return "torch_native"

    def get_compile_backend(self, mode: str | None = None) -> str:
        """Return ``eager``: SGLang decorates functions with it on import."""
        return "eager"

    def get_dispatch_key_name(self) -> str:
        """Return ``native``: where we dispatch nothing, SGLang's PyTorch paths run."""
        return "native"

    def get_torch_profiler_activity_str(self) -> str:
        """Return PyTorch's name of the profiler activity."""
        return "PrivateUse1"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        """Return the profiler activity."""
        return torch.profiler.ProfilerActivity.PrivateUse1

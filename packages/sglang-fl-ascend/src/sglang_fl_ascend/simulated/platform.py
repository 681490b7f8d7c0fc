"""The SGLang platform of the simulated NPU: SGLang's own asks for the attention kernels of a chip.

Everything else of this NPU is what SGLang sees on a real one, ``is_npu()`` included.
"""

from typing import Any

import torch
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

from sglang_fl.platform import LoadsPlugins, SGLangPools

__all__ = ["SimulatedNpuPlatform"]

DEVICE = "npu"
#: SGLang leaves ten gigabytes to what a chip needs beside weights and cache; this one has not so many.
MEM_FRACTION_STATIC = 0.3


def _npu() -> Any:
    return torch.get_device_module(DEVICE)


class SimulatedNpuPlatform(LoadsPlugins, SGLangPools, SRTPlatform):  # type: ignore[misc]
    """PyTorch's attention, collectives over HCCL."""

    _enum = PlatformEnum.OOT
    device_name = DEVICE
    device_type = DEVICE

    def get_device(self, device_id: int = 0) -> str:
        """Return ``npu``."""
        return DEVICE

    def get_device_total_memory(self, device_id: int = 0) -> int:
        """Return bytes."""
        return int(_npu().mem_get_info(device_id)[1])

    def get_current_memory_usage(self, device: torch.device | None = None) -> int:
        """Return bytes."""
        free, total = _npu().mem_get_info(device)
        return int(total - free)

    def is_pin_memory_available(self, device: Any = None) -> bool:
        """Return True."""
        return True

    def get_group_coordinator_device(self, local_rank: int) -> torch.device:
        """Return a rank's device."""
        return torch.device(DEVICE, local_rank)

    def get_default_attention_backend(self) -> str:
        """Return the one that needs no kernels."""
        return "torch_native"

    def get_dispatch_key_name(self) -> str:
        """Return the one of SGLang's own platform: where we dispatch nothing, its calls of operators run."""
        return DEVICE

    def get_compile_backend(self, mode: str | None = None) -> str:
        """Return the one that compiles nothing."""
        return "eager"

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Undo what SGLang sets wherever there is ``torch.npu``, whatever the user says."""
        from sglang.srt.arg_groups.overrides import declare_resolution

        if server_args.mem_fraction_static is None:
            server_args.mem_fraction_static = MEM_FRACTION_STATIC
        names = ("attention_backend", "prefill_attention_backend", "decode_attention_backend")
        declare_resolution(server_args, "simulated", page_size=1, **dict.fromkeys(names, "torch_native"))

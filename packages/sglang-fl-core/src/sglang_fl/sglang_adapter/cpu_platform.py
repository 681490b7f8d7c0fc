"""The SGLang platform for CPUs without AMX kernels, for which SGLang has none.

SGLang instantiates it while ``sglang`` itself is half imported: nothing here may import more of
SGLang than its platform interface before a method is called.
"""

import functools
from typing import Any

import psutil
import torch
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

from sglang_fl.platform import LoadsPlugins, NotCuda, NoTriton, SGLangPools, TorchNative
from sglang_fl.registry.cpu import MEM_FRACTION_STATIC
from sglang_fl.sglang_adapter.releases import PLAIN_PREFILL
from sglang_fl.sglang_adapter.seams import installed_version

__all__ = ["CpuPlatform"]


class CpuPlatform(LoadsPlugins, NoTriton, TorchNative, SGLangPools, NotCuda, SRTPlatform):  # type: ignore[misc]
    """A plain CPU: PyTorch attention, no graphs, collectives over gloo."""

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"

    def get_device(self, device_id: int = 0) -> str:
        """Return ``cpu``."""
        return "cpu"

    def set_device(self, device: torch.device) -> None:
        """Do nothing: there is one CPU."""

    def get_device_name(self, device_id: int = 0) -> str:
        """Return ``cpu``."""
        return "cpu"

    def get_device_total_memory(self, device_id: int = 0) -> int:
        """Return the host's memory in bytes."""
        return int(psutil.virtual_memory().total)

    def get_current_memory_usage(self, device: torch.device | None = None) -> int:
        """Return the bytes of the host's memory that is not available."""
        memory = psutil.virtual_memory()
        return int(memory.total - memory.available)

    def is_pin_memory_available(self, device: Any = None) -> bool:
        """Return False: pinning needs an accelerator."""
        return False

    def get_torch_distributed_backend_str(self) -> str:
        """Return ``gloo``."""
        return "gloo"

    def get_torch_profiler_activity_str(self) -> str:
        """Return PyTorch's name of the profiler activity."""
        return "CPU"

    def get_torch_profiler_activity(self) -> torch.profiler.ProfilerActivity:
        """Return the profiler activity."""
        return torch.profiler.ProfilerActivity.CPU

    def get_default_attention_backend(self) -> str:
        """Return ``torch_native``, SGLang's own backend that needs no kernels."""
        return "torch_native"

    def get_compile_backend(self, mode: str | None = None) -> str:
        """Return ``eager``: no compiler is assumed on the host."""
        return "eager"

    def get_dispatch_key_name(self) -> str:
        """Return ``native``: where we dispatch nothing, SGLang's PyTorch paths run."""
        return "native"

    def init_backend(self) -> None:
        """Let latent attention rotate without YaRN, in a process that runs a model."""
        super().init_backend()
        if installed_version() in PLAIN_PREFILL:  # before, no attention backend serves it on a CPU
            rotate_plainly_too()

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Set what the user left open: the share of memory, and the attention backend."""
        super().apply_server_args_defaults(server_args)
        if server_args.mem_fraction_static is None:
            server_args.mem_fraction_static = MEM_FRACTION_STATIC
        if server_args.attention_backend in (None, "intel_amx"):
            server_args.attention_backend = self.get_default_attention_backend()


def rotate_plainly_too() -> None:
    """Give a model with latent attention SGLang's plain rope on a CPU where it asks for no scaling.

    For these models SGLang chooses the rope by the device, and on one called ``cpu`` it has DeepSeek's YaRN
    alone: it asserts that there is a scaling.
    """
    from sglang.srt.layers.rotary_embedding import factory

    scaled = factory.get_rope_cpu

    @functools.wraps(scaled)
    def get_rope(
        head_size: int,
        rotary_dim: int,
        max_position: int,
        base: float,
        is_neox_style: bool = True,
        rope_scaling: dict[str, Any] | None = None,
        *others: Any,
    ) -> Any:
        common = (head_size, rotary_dim, max_position, base, is_neox_style, rope_scaling)
        return scaled(*common, *others) if rope_scaling else factory.get_rope(*common, *others[:2])

    factory.get_rope_cpu = get_rope

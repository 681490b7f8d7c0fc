"""The SGLang platform for CPUs without AMX kernels, for which SGLang has none.

SGLang instantiates it while ``sglang`` itself is half imported: nothing here may import more of
SGLang than its platform interface before a method is called.
"""

from collections.abc import Callable
from typing import Any

import psutil
import torch
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

from sglang_fl.cpu import MEM_FRACTION_STATIC

__all__ = ["CpuPlatform"]


class CpuPlatform(SRTPlatform):  # type: ignore[misc]
    """A plain CPU: PyTorch attention, no graphs, collectives over gloo.

    It carries the methods of all supported releases: up to 0.5.21 SGLang asks it for the KV pools
    and the allocator, later it takes its own.
    """

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
        """Return the bytes of the host's memory that cannot be had."""
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
        """Return ``torch_native``, the one backend that needs no kernels."""
        return "torch_native"

    def get_compile_backend(self, mode: str | None = None) -> str:
        """Return ``eager``: no compiler is assumed on the host."""
        return "eager"

    def get_dispatch_key_name(self) -> str:
        """Return ``native``: where we dispatch nothing, SGLang's PyTorch paths run."""
        return "native"

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Set what the user left open: the share of memory, and the attention backend."""
        if server_args.mem_fraction_static is None:
            server_args.mem_fraction_static = MEM_FRACTION_STATIC
        if server_args.attention_backend in (None, "intel_amx"):
            server_args.attention_backend = self.get_default_attention_backend()

    if not hasattr(SRTPlatform, "get_kv_pool_cls"):  # up to 0.5.21; later SGLang takes these itself

        def get_mha_kv_pool_cls(self) -> type:
            """Return SGLang's own KV pool."""
            from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

            return MHATokenToKVPool  # type: ignore[no-any-return]

        def get_mla_kv_pool_cls(self) -> type:
            """Return SGLang's own KV pool of latent attention."""
            from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

            return MLATokenToKVPool  # type: ignore[no-any-return]

        def get_paged_allocator_cls(self) -> Callable[..., Any]:
            """Return a maker of SGLang's allocator for pages of one token."""
            return _token_allocator


def _token_allocator(size: int, *, page_size: int, **options: Any) -> Any:
    from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator

    if page_size != 1:
        raise NotImplementedError(
            f"--page-size {page_size}: this SGLang allocates larger pages with Triton kernels only; "
            f"use --page-size 1 on a CPU"
        )
    return TokenToKVPoolAllocator(size, **options)

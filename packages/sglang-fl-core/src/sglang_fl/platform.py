"""What the SGLang platform of a vendor package may take from core.

SGLang imports platforms while ``sglang`` itself is half imported: nothing here imports any of SGLang before a
method is called.
"""

import os
from collections.abc import Callable
from typing import Any

__all__ = ["NotCuda", "SGLangPools"]


class SGLangPools:
    """Lets a platform keep SGLang's own KV pools and its allocator for pages of one token.

    Up to 0.5.21 SGLang asks a platform for them. Later it takes these itself, and warns of a platform that
    still answers, so that there this class adds nothing. A platform names it before its SGLang base class::

        class MyPlatform(SGLangPools, SRTPlatform): ...
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Give the answers to a platform whose SGLang asks; those that it defines itself stay."""
        super().__init_subclass__(**options)
        if hasattr(cls, "get_kv_pool_cls"):
            return
        for answer in (get_mha_kv_pool_cls, get_mla_kv_pool_cls, get_paged_allocator_cls):
            if answer.__name__ not in vars(cls):
                setattr(cls, answer.__name__, answer)


class NotCuda:
    """Keeps SGLang from taking a platform for CUDA where it does not ask.

    Up to 0.5.20 SGLang prepares pictures on ``cuda:0`` for all platforms but a few of its own, and up to
    0.5.22 it takes NCCL for their ranks wherever the library can be loaded, which a torch for CUDA brings
    along. Later this class adds nothing. A platform names it before its SGLang base class::

        class MyPlatform(SGLangPools, NotCuda, SRTPlatform): ...
    """

    def apply_server_args_defaults(self, server_args: Any) -> None:
        """Have pictures prepared on the host by Pillow, unless the user chose what prepares them."""
        super().apply_server_args_defaults(server_args)  # type: ignore[misc]
        if hasattr(self, "capabilities"):
            return
        if not hasattr(server_args, "image_processor_backend"):
            server_args.disable_fast_image_processor = True
        elif server_args.image_processor_backend == "auto":
            server_args.image_processor_backend = "pil"

    def init_backend(self) -> None:
        """Have no NCCL found, unless the user named one."""
        super().init_backend()  # type: ignore[misc]
        if not hasattr(getattr(self, "capabilities", None), "supports_pynccl"):
            os.environ.setdefault("SGLANG_NCCL_SO_PATH", f"no-nccl-on-{self.device_name}")  # type: ignore[attr-defined]


def get_mha_kv_pool_cls(platform: Any) -> type:
    """Return SGLang's own KV pool."""
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    return MHATokenToKVPool  # type: ignore[no-any-return]


def get_mla_kv_pool_cls(platform: Any) -> type:
    """Return SGLang's own KV pool of latent attention."""
    from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

    return MLATokenToKVPool  # type: ignore[no-any-return]


def get_paged_allocator_cls(platform: Any) -> Callable[..., Any]:
    """Return a maker of SGLang's allocator.

    It raises ``NotImplementedError`` for larger pages than one token.
    """

    def token_allocator(size: int, *, page_size: int, **options: Any) -> Any:
        from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator

        if page_size != 1:
            raise NotImplementedError(
                f"--page-size {page_size}: this SGLang allocates larger pages with Triton kernels only; "
                f"use --page-size 1 on {platform.device_name}"
            )
        return TokenToKVPoolAllocator(size, **options)

    return token_allocator

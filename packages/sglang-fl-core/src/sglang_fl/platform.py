"""What the SGLang platform of a vendor package may take from core.

SGLang imports platforms while ``sglang`` itself is half imported: nothing here imports any of SGLang before a
method is called.
"""

from collections.abc import Callable
from typing import Any

__all__ = ["SGLangPools"]


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

"""What the SGLang platform of a vendor package may take from core.

SGLang imports platforms while ``sglang`` itself is half imported: nothing here may import more of SGLang than
its platform interface before a method is called.
"""

from collections.abc import Callable
from typing import Any

from sglang.srt.platforms.interface import SRTPlatform

__all__ = ["SGLangPools"]


class SGLangPools(SRTPlatform):  # type: ignore[misc]
    """A platform that keeps SGLang's own KV pools and its allocator for pages of one token.

    Up to 0.5.21 SGLang asks a platform for them. Later it takes these itself, and warns of a platform that
    still answers, so that there this class adds nothing.
    """

    if not hasattr(SRTPlatform, "get_kv_pool_cls"):

        def get_mha_kv_pool_cls(self) -> type:
            """Return SGLang's own KV pool."""
            from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

            return MHATokenToKVPool  # type: ignore[no-any-return]

        def get_mla_kv_pool_cls(self) -> type:
            """Return SGLang's own KV pool of latent attention."""
            from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

            return MLATokenToKVPool  # type: ignore[no-any-return]

        def get_paged_allocator_cls(self) -> Callable[..., Any]:
            """Return a maker of SGLang's allocator.

            It raises ``NotImplementedError`` for larger pages than one token.
            """
            return self._token_allocator

        def _token_allocator(self, size: int, *, page_size: int, **options: Any) -> Any:
            from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator

            if page_size != 1:
                raise NotImplementedError(
                    f"--page-size {page_size}: this SGLang allocates larger pages with Triton kernels only; "
                    f"use --page-size 1 on {self.device_name}"
                )
            return TokenToKVPoolAllocator(size, **options)

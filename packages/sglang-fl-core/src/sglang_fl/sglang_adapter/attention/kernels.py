"""The kernels of the attention backend, as methods of an object on which each can be replaced."""

from collections.abc import Iterable
from typing import Any

from sglang_fl.ops import OPS

__all__ = ["AttentionKernels"]


class AttentionKernels:
    """Computes by the references, until layer 2 puts what it chose in the place of a method.

    Each backend has its own, because SGLang builds several in one process.

    Parameters
    ----------
    needs : the options of the ops that the model's layers, or its pools, need, whatever the call
    """

    def __init__(self, needs: Iterable[str] = ()) -> None:
        self.needs = frozenset(needs)

    def decode(self, *tensors: Any, **options: Any) -> Any:
        """Compute ``decode_attention``."""
        return OPS["decode_attention"].reference(*tensors, **options)

    def extend(self, *tensors: Any, **options: Any) -> Any:
        """Compute ``extend_attention``."""
        return OPS["extend_attention"].reference(*tensors, **options)

    def write(self, *tensors: Any, **options: Any) -> Any:
        """Compute ``kv_cache_write``."""
        return OPS["kv_cache_write"].reference(*tensors, **options)

"""Memory as the chip's kernels want it, which load 16 bytes at once."""

from torch import Tensor

__all__ = ["VECTOR_BYTES", "dense"]

VECTOR_BYTES = 16


def dense(x: Tensor) -> Tensor:
    """Return ``x``, or a copy where it is not dense or does not begin at a multiple of 16 bytes."""
    if x.is_contiguous() and x.data_ptr() % VECTOR_BYTES:
        return x.clone()
    return x.contiguous()

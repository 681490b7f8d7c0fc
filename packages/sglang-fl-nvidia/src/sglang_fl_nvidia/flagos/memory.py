"""How tensors lie in memory, as the kernels take them."""

from typing import Any

from torch import Tensor

__all__ = ["aligned", "has_dense_rows", "stride_of_rows", "strides_of"]


def aligned(*tensors: Any) -> bool:
    """Whether all begin at a multiple of 16 bytes."""
    return not any(tensor.data_ptr() % 16 for tensor in tensors)


def has_dense_rows(tensor: Tensor) -> bool:
    """Whether the elements of each row lie side by side: those of all axes but the first.

    The stride of an axis of one is any number.
    """
    dense = 1
    for size, stride in zip(tensor.shape[:0:-1], tensor.stride()[:0:-1], strict=True):
        if size > 1 and stride != dense:
            return False
        dense *= size
    return True


def stride_of_rows(rows: Tensor) -> int:
    """Return the stride of rows, (N, heads, elements); one row alone has no stride of its own."""
    return rows.stride(0) if len(rows) > 1 else rows.shape[1] * rows.shape[2]


def strides_of(numbers: Tensor, count: int) -> tuple[int, ...]:
    """Return the strides of so many numbers, (N,); one alone has no stride of its own, and counts as dense.

    A launch's key and its constants both have them from here: were the constant what one number happens to
    have, several would be read at it.
    """
    return (1, *numbers.stride()[1:]) if count == 1 else numbers.stride()

"""Runs of tokens that lie one after the other, and the rows of a pool that hold their states."""

from collections.abc import Iterator

from torch import Tensor

__all__ = ["sequences"]


def sequences(cu_seqlens: Tensor, indices: Tensor) -> Iterator[tuple[int, int, int]]:
    """Yield for each sequence its first token, the token after its last, and its state's index."""
    bounds = cu_seqlens.tolist()
    yield from zip(bounds[:-1], bounds[1:], indices.tolist(), strict=True)

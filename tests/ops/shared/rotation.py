"""What the rotary embeddings share."""

import numpy as np
import torch
from torch import Tensor

from tests.ops.shared.drawing import Source
from tests.ops.subject import Array

__all__ = ["cache", "heads", "pairs"]


def pairs(rotary_dim: int, is_neox_style: bool) -> tuple[Array, Array]:
    count = np.arange(rotary_dim // 2)
    return (count, count + rotary_dim // 2) if is_neox_style else (2 * count, 2 * count + 1)


def cache(source: Source, width: int, length: int) -> Tensor:
    angles = torch.outer(torch.arange(length), 100.0 ** -torch.linspace(0, 1, width // 2))
    made = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return made.to(source.one_of(torch.float32, source.dtype))


def heads(source: Source, tokens: int, head_size: int) -> tuple[Tensor, Tensor]:
    """Return query and key: each by itself, or both out of one projection; with an axis of heads or not."""
    counts = source.number(1, 3), source.number(1, 2)
    sizes = [count * head_size for count in counts]
    if source.one_of(False, True):
        query, key = source.rows(tokens, sum(sizes)).split(sizes, dim=-1)
    else:
        query, key = (source.rows(tokens, size) for size in sizes)
    if source.one_of(False, True):
        return query.unflatten(-1, (counts[0], head_size)), key.unflatten(-1, (counts[1], head_size))
    return query, key

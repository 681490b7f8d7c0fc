"""What the rotary embeddings share: turning the pairs of query and key by given cosines and sines."""

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import compute_dtype

__all__ = ["heads_of", "rotate", "rotation_magnitude", "sample_cos_sin_cache"]


def rotate(
    op: str, query: Tensor, key: Tensor, rows: Tensor, head_size: int, is_neox_style: bool
) -> tuple[Tensor, Tensor]:
    """Rotate the first elements of each head of ``query`` and ``key``.

    Parameters
    ----------
    op : for error messages
    query, key : see ``rotary_embedding``
    rows : Tensor, (T, rotary_dim): for each token the cosines, then the sines
    head_size, is_neox_style : see ``rotary_embedding``

    Raises
    ------
    ContractError : query or key is not T rows of whole heads
    """
    return (
        _rotate(f"{op}: query", query, rows, head_size, is_neox_style),
        _rotate(f"{op}: key", key, rows, head_size, is_neox_style),
    )


def _rotate(what: str, x: Tensor, rows: Tensor, head_size: int, is_neox_style: bool) -> Tensor:
    heads, dtype = heads_of(what, x, len(rows), head_size), compute_dtype(x, rows)
    rotary_dim = rows.shape[-1]
    cos, sin = rows.to(dtype).unsqueeze(1).chunk(2, dim=-1)
    first, second = _pairs(heads[..., :rotary_dim].to(dtype), is_neox_style)
    rotated = _joined(first * cos - second * sin, second * cos + first * sin, is_neox_style)
    return torch.cat((rotated.to(x.dtype), heads[..., rotary_dim:]), dim=-1).reshape(x.shape)


def heads_of(what: str, x: Tensor, tokens: int, head_size: int) -> Tensor:
    """View ``x`` as (tokens, heads, head_size); its heads may lie in one axis or in two."""
    whole = x.dim() > 1 and x.shape[-1] % head_size == 0
    if whole and x.shape[:-1].numel() == tokens:
        return x.reshape(tokens, x.shape[-1] // head_size, head_size)
    if whole and x.shape[-1] == head_size and x.shape[:-2].numel() == tokens:
        return x.reshape(tokens, x.shape[-2], head_size)
    raise ContractError(f"{what} {tuple(x.shape)} is not {tokens} rows of heads of {head_size}")


def _pairs(x: Tensor, is_neox_style: bool) -> tuple[Tensor, Tensor]:
    if is_neox_style:
        first, second = x.chunk(2, dim=-1)
        return first, second
    return x[..., 0::2], x[..., 1::2]


def _joined(first: Tensor, second: Tensor, is_neox_style: bool) -> Tensor:
    if is_neox_style:
        return torch.cat((first, second), dim=-1)
    return torch.stack((first, second), dim=-1).flatten(-2)


def rotation_magnitude(
    query: Tensor, key: Tensor, rows: Tensor, head_size: int, is_neox_style: bool
) -> tuple[Tensor, Tensor]:
    """Return the size of the two products that each element of the results is the sum of."""
    rows = rows.abs()
    # |x1||cos| + |x2||sin| for the first of a pair: the rotation with the sine's sign turned.
    cos, sin = rows.unsqueeze(1).chunk(2, dim=-1)

    def size(x: Tensor) -> Tensor:
        heads = x.abs().reshape(len(rows), -1, head_size) if len(rows) else x.reshape(0, 0, head_size)
        rotary_dim = rows.shape[-1]
        first, second = _pairs(heads[..., :rotary_dim], is_neox_style)
        terms = _joined(first * cos + second * sin, second * cos + first * sin, is_neox_style)
        return torch.cat((terms, heads[..., rotary_dim:]), dim=-1).reshape(x.shape)

    return size(query), size(key)


def sample_cos_sin_cache(length: int, width: int) -> Tensor:
    """Return the cosines, then the sines, of each position for sample inputs: (length, width), float64."""
    frequencies = 10000 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)

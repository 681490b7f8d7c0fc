"""The keys of ``extend_attention`` as kernels take them that read no pool by slots: one after the other."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["Packed", "pack"]


@dataclass(frozen=True)
class Packed:
    """The sequences of a call that have new tokens; the others have nothing to ask.

    Parameters
    ----------
    rows : the new tokens, one sequence after the other, among the rows of the call; the others are padding
    new : how many new tokens each sequence has, 1 or more
    whole : how many keys each has, its prefix and its new tokens
    keys : Tensor, (L, KH, D), dense: those of each sequence, its prefix before its new tokens
    values : Tensor, (L, KH, DV), dense
    """

    rows: slice
    new: list[int]
    whole: list[int]
    keys: Tensor
    values: Tensor


def pack(
    k: Tensor,
    v: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
) -> Packed:
    """Gather the keys and values of the prefixes beside the new ones; without a prefix nothing is copied.

    The lengths are read on the host. The arguments are those of ``extend_attention``.
    """
    starts, lists = torch.stack((qo_indptr.long(), kv_indptr.long())).tolist()
    both = zip(pairwise(starts), pairwise(lists), strict=True)
    asking = [(new, old) for new, old in both if new[0] < new[1]]
    new = [last - first for (first, last), _ in asking]
    old = [last - first for _, (first, last) in asking]
    slots = torch.cat([kv_indices[first:last] for _, (first, last) in asking] or [kv_indices[:0]])
    rows = slice(starts[0], starts[-1])
    keys, values = (
        _joined(pool, slots, old, fresh[rows], new) for pool, fresh in ((k_buffer, k), (v_buffer, v))
    )
    return Packed(rows, new, [sum(lengths) for lengths in zip(new, old, strict=True)], keys, values)


def _joined(pool: Tensor, slots: Tensor, old: list[int], fresh: Tensor, new: list[int]) -> Tensor:
    if not len(slots):
        return fresh.contiguous()
    pairs = zip(torch.split(pool.index_select(0, slots), old), torch.split(fresh, new), strict=True)
    return torch.cat([rows for pair in pairs for rows in pair])

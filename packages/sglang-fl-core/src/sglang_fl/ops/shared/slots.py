"""The slots of ``decode_attention`` as kernels take them that want a table with a row for each sequence."""

import torch
from torch import Tensor

__all__ = ["longest", "table_of_slots"]


def longest(kv_indptr: Tensor, kv_indices: Tensor) -> int:
    """Return how many slots a sequence has at most.

    The lengths are read on the host, but while a graph is captured: they come later there, and none exceeds
    the number of ``kv_indices``.
    """
    if len(kv_indptr) < 2:
        return 0
    module = torch.get_device_module(kv_indptr.device)
    is_capturing = getattr(module, "is_current_stream_capturing", None)
    if is_capturing is not None and is_capturing():
        return len(kv_indices)
    return int(kv_indptr.diff().max())


def table_of_slots(kv_indptr: Tensor, kv_indices: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the slots of each sequence.

    Parameters
    ----------
    kv_indptr, kv_indices : of the op; the second is not empty
    most : from ``longest``, 1 or more

    Returns
    -------
    table : Tensor, (B, most): rows are filled up with the sequence's last slot, because another one might
        hold a NaN; that of a sequence without slots is some other's
    is_slot : Tensor, (B, most), bool: False where it is filled up
    """
    places = torch.arange(most, device=kv_indptr.device)
    lengths = kv_indptr.diff().unsqueeze(1)
    within = torch.minimum(places, (lengths - 1).clamp_(min=0))
    listed = (kv_indptr[:-1].unsqueeze(1) + within).clamp_(max=len(kv_indices) - 1)
    return kv_indices[listed], places < lengths

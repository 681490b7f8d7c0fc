"""``extend_attention`` by ``torch_mlu_ops.flash_attention``.

Its own block tables want blocks of sixteen keys, which a pool by slots is not: the keys of the prefixes are
gathered, each sequence's before its new ones.
"""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from sglang_fl.ops import Outputs
from sglang_fl.ops.extend_attention import check_extend
from sglang_fl.ops.shared.packed import pack
from sglang_fl_mlu.library import function
from sglang_fl_mlu.vendor.attention import (
    as_float,
    refuse_lse_beside_sinks,
    require_one_dtype,
    result_for,
)

__all__ = ["extend_attention"]

NAME = "flash_attention"
flash_attention = function("flash_attention", "window_size_left", "return_lse", "sink")


def extend_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    qo_indptr: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    scale: float,
    *,
    is_causal: bool = True,
    sliding_window: int = -1,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
) -> Outputs:
    """See ``sglang_fl.ops.extend_attention``. The lengths are read on the host.

    Raises
    ------
    ContractError : as the contract says
    UnsupportedError : several dtypes; a logarithm beside sinks
    """
    check_extend(q, k, v, k_buffer, v_buffer, qo_indptr, kv_indptr, kv_indices, sinks, out)
    require_one_dtype(NAME, q=q, k=k, v=v, k_buffer=k_buffer, v_buffer=v_buffer)
    refuse_lse_beside_sinks(NAME, sinks, return_lse)
    packed = pack(k, v, k_buffer, v_buffer, qo_indptr, kv_indptr, kv_indices)
    rows = packed.rows
    others = (k, k_buffer, v_buffer, qo_indptr, kv_indptr, kv_indices, sinks)
    result = result_for(q, v, out, *others)
    result[: rows.start].zero_()
    result[rows.stop :].zero_()
    lse = torch.full(q.shape[:2], -torch.inf, dtype=torch.float32, device=q.device) if return_lse else None
    if packed.new:
        sums = torch.tensor([list(accumulate(lengths, initial=0)) for lengths in (packed.new, packed.whole)])
        of_new, of_all = sums.to(q.device, torch.int32).unbind()
        answer: Any = flash_attention(
            q[rows].contiguous(),
            packed.keys,
            packed.values,
            result[rows],
            of_new,
            of_all,
            None,
            None,
            max(packed.new),
            max(packed.whole),
            scale,
            is_causal,
            window_size_left=sliding_window,
            return_lse=return_lse,
            sink=as_float(sinks),
        )
        if lse is not None:
            lse[rows] = answer[1].t()
    return result if lse is None else (result, lse)

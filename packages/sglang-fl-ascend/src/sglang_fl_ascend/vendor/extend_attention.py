"""``extend_attention`` by ``torch_npu.npu_fusion_attention``, over packed sequences.

The inference operators take packed sequences of a few sizes of heads alone.
"""

from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import torch_npu
from torch import Tensor

from sglang_fl.ops import Outputs
from sglang_fl.ops.extend_attention import check_extend
from sglang_fl.ops.shared.packed import Packed, pack
from sglang_fl_ascend.vendor import products
from sglang_fl_ascend.vendor.attention import require, require_dtype

__all__ = ["extend_attention"]

NAME = "npu_fusion_attention"
products.require("npu_fusion_attention")

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MOST_HEADS, MOST_ELEMENTS, MOST_SEQUENCES, MOST_KEYS = 256, 768, 1024, 2**20
#: Values of ``sparse_mode``, both with the mask that ``_mask`` returns: the last query sees the last key.
CAUSAL, BAND = 3, 4
#: As good as none.
NO_END = 2**31 - 1


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
    return_lse: bool = False,
    out: Tensor | None = None,
) -> Outputs:
    """See ``sglang_fl.ops.extend_attention``. The lengths are read on the host; ``out`` is not written.

    Raises
    ------
    ContractError : as the contract says
    UnsupportedError : several dtypes; more values than keys have elements, or more than 768; more than 256
        query heads, 1024 sequences with new tokens or 2**20 keys of them
    """
    check_extend(q, k, v, k_buffer, v_buffer, qo_indptr, kv_indptr, kv_indices, None, out)
    require_dtype(NAME, DTYPES, q=q, k=k, v=v, k_buffer=k_buffer, v_buffer=v_buffer)
    heads, keys, values = q.shape[1], q.shape[2], v.shape[2]
    require(
        values <= keys <= MOST_ELEMENTS and heads <= MOST_HEADS,
        f"{NAME} takes {MOST_HEADS} heads, {MOST_ELEMENTS} elements of a key and no more of a value, not "
        f"{heads}, {keys} and {values}",
    )
    packed = pack(k, v, k_buffer, v_buffer, qo_indptr, kv_indptr, kv_indices)
    require(
        len(packed.new) <= MOST_SEQUENCES and len(packed.keys) <= MOST_KEYS,
        f"{NAME} takes {MOST_SEQUENCES} sequences and {MOST_KEYS} keys, not {len(packed.new)} and "
        f"{len(packed.keys)}",
    )
    result = q.new_zeros(*q.shape[:2], values)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=torch.float32, device=q.device) if return_lse else None
    if packed.new:
        attended, peaks, sums = _attended(q, packed, scale, is_causal, sliding_window)
        result[packed.rows] = attended
        if lse is not None:  # the same eight times
            lse[packed.rows] = peaks[..., 0] + sums[..., 0].log()
    return result if lse is None else (result, lse)


def _attended(
    q: Tensor, packed: Packed, scale: float, is_causal: bool, sliding_window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return results, (T, H, DV), the largest score of each and the sum beside it, (T, H, 8) both."""
    options: dict[str, Any] = {}
    if sliding_window >= 0:
        options = {"sparse_mode": BAND, "pre_tockens": sliding_window}
        options["next_tockens"] = 0 if is_causal else NO_END
    elif is_causal:
        options = {"sparse_mode": CAUSAL}
    if options:
        options["atten_mask"] = _mask(q.device)
    attended, peaks, sums, *_ = torch_npu.npu_fusion_attention(
        q[packed.rows].contiguous(),
        packed.keys,
        packed.values,
        q.shape[1],
        "TND",
        scale=scale,
        actual_seq_qlen=list(accumulate(packed.new)),
        actual_seq_kvlen=list(accumulate(packed.whole)),
        softmax_layout="TND",
        **options,
    )
    return attended, peaks, sums


@lru_cache
def _mask(device: torch.device) -> Tensor:
    """Return the mask that is the same for all lengths: True where a key is not seen."""
    return torch.ones(2048, 2048, dtype=torch.bool, device=device).triu_(1)

"""``decode_attention`` by ``torch_npu.npu_fused_infer_attention_score``.

It takes a paged cache in blocks of a multiple of sixteen keys, which a pool by slots is not: the keys of each
sequence are gathered, as many as the longest has. A mask says which of them are its own, so that no length is
an argument of the host, which a graph would keep.
"""

import torch
import torch_npu
from torch import Tensor

from sglang_fl.ops import Outputs
from sglang_fl.ops.decode_attention import check_decode
from sglang_fl.ops.shared.slots import longest, table_of_slots
from sglang_fl_ascend.vendor import products
from sglang_fl_ascend.vendor.attention import require, require_dtype

__all__ = ["decode_attention"]

NAME = "npu_fused_infer_attention_score"
products.require("npu_fused_infer_attention_score")

DTYPES = (torch.float16, torch.bfloat16)
MOST_HEADS, MOST_SHARING, MOST_ELEMENTS, MOST_KEYS = 256, 64, 512, 262144


def decode_attention(
    q: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    kv_indptr: Tensor,
    kv_indices: Tensor,
    scale: float,
    *,
    return_lse: bool = False,
    out: Tensor | None = None,
) -> Outputs:
    """See ``sglang_fl.ops.decode_attention``. ``out`` is not written.

    The longest length is read on the host, but for a graph that is captured: there as many keys are gathered
    for each sequence as ``kv_indices`` has.

    Raises
    ------
    ContractError : as the contract says
    UnsupportedError : float32, or several dtypes; values of another size than keys; more than 256 query
        heads, 64 of them for one of keys, 512 elements of a head, or 262144 keys of a sequence
    """
    check_decode(q, k_buffer, v_buffer, kv_indptr, kv_indices, None, out)
    _require(q, k_buffer, v_buffer)
    most = longest(kv_indptr, kv_indices)
    require(most <= MOST_KEYS, f"{NAME} takes {MOST_KEYS} keys of a sequence, not {most}")
    if most == 0:
        nothing = torch.full(q.shape[:2], -torch.inf, dtype=torch.float32, device=q.device)
        return (torch.zeros_like(q), nothing) if return_lse else torch.zeros_like(q)
    table, is_slot = table_of_slots(kv_indptr, kv_indices, most)
    is_empty = ~is_slot[:, :1]
    is_masked = ~is_slot
    is_masked[:, 0] = False  # of an empty sequence a key is taken, and the result dropped
    attended, logarithms = torch_npu.npu_fused_infer_attention_score(
        q.unsqueeze(1).contiguous(),
        k_buffer[table],
        v_buffer[table],
        atten_mask=is_masked[:, None, None],
        num_heads=q.shape[1],
        scale=scale,
        input_layout="BSND",
        num_key_value_heads=k_buffer.shape[1],
        softmax_lse_flag=return_lse,
    )
    result: Tensor = attended.squeeze(1).masked_fill_(is_empty.unsqueeze(2), 0.0)
    if not return_lse:
        return result
    return result, logarithms.reshape(q.shape[:2]).masked_fill_(is_empty, -torch.inf)


def _require(q: Tensor, k_buffer: Tensor, v_buffer: Tensor) -> None:
    """Refuse what the operator is not documented to take."""
    require_dtype(NAME, DTYPES, q=q, k_buffer=k_buffer, v_buffer=v_buffer)
    (_, heads, elements), kv_heads = q.shape, k_buffer.shape[1]
    require(
        v_buffer.shape == k_buffer.shape,
        f"{NAME} takes values of the size of keys, not {tuple(v_buffer.shape)} and {tuple(k_buffer.shape)}",
    )
    require(
        heads <= min(MOST_HEADS, MOST_SHARING * kv_heads) and elements <= MOST_ELEMENTS,
        f"{NAME} takes {MOST_HEADS} query heads, {MOST_SHARING} of them for one of keys, and "
        f"{MOST_ELEMENTS} elements of a head, not {heads} for {kv_heads} of {elements}",
    )

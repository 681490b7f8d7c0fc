"""The functions of ``torch_mlu_ops`` that are called here, with the signatures they are called by.

The library comes from Cambricon and has no public wheel or source, so this is what can be seen of it:

=== ==================================================================================================
D   its Python layer ``_ops.py``, 1.12.1+torch2.11.0, in miznchimaki/domesticated_torch_mlu_ops
V   Cambricon/vllm-mlu, ``vllm_mlu/_mlu_ops.py``: the vendor's own caller
L   DeepLink-org/dlinfer, ``dlinfer/vendor/camb/camb_ops.py``: calls of 1.2
M   Cambricon's manual of 1.3.2, January 2025: dtypes, shapes, limits
X   jd-opensource/xllm, ``single_query_cached_kv_attn.cpp``: a caller of the layer below, with its checks
S   sgl-project/sglang, pull request 26898: SGLang's layers on an MLU
=== ==================================================================================================

All signatures are D's. ``library`` compares them with the installed library before it is called. This file
alone says them; nothing here computes anything.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["SIGNATURES"]


def active(
    input: Tensor,  # noqa: A002 - the library's name, here and below
    act_mode: str,
    is_gated: bool,
    active_coef: float = 1.0,
    high_precision: bool = False,
    gelu_approximate: str = "none",
) -> Tensor:
    """Activation, new tensor; gated: of the first half of the last axis, times the second half.

    Seen: D; V and L pass the first three. ``act_mode``: silu, gelu, swish, quick_gelu. ``gelu_approximate``
    is younger than L, and no caller of it was seen.
    """
    raise NotImplementedError


def fused_rms_norm(
    x: Tensor,
    residual: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    bias: Tensor | None,
    eps: float,
    store_output_before_norm: bool,
    quant_scale: Tensor | None = None,
    out: Tensor | None = None,
    dynamic_quant: bool = False,
    store_output_after_norm: bool = False,
    quant_type: torch.dtype = torch.int8,
    scale_type: torch.dtype = torch.float,
    mx_quant: bool = False,
) -> Any:
    """Root-mean-square norm of ``x + bias + residual``; with ``store_output_before_norm`` (normed, sum).

    Seen: D; L passes eight or nine, S the first seven. New tensors. All tensors of the dtype of ``x``, dense.
    """
    raise NotImplementedError


def fused_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    bias: Tensor | None,
    eps: float,
    store_output_before_norm: bool,
    quant_scale: Tensor | None = None,
    out: Tensor | None = None,
    dynamic_quant: bool = False,
    store_output_after_norm: bool = False,
    quant_type: torch.dtype = torch.int8,
    gamma_add_coef: float = 0.0,
    scale_type: torch.dtype = torch.float,
    mx_quant: bool = False,
) -> Any:
    """Layer norm of ``x + bias + residual``; else as ``fused_rms_norm``. Seen: D; V passes seven."""
    raise NotImplementedError


def apply_rotary(
    input: Tensor,  # noqa: A002
    sin_cache: Tensor,
    cos_cache: Tensor,
    position_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    interleaved: bool,
    discrete: bool,
    dynamic_ntk: bool,
    max_seqlen: int,
    output: Tensor | None = None,
    is_inverse: bool = False,
) -> Tensor:
    """Rotary embedding, in place unless ``output`` is given; the sines come before the cosines.

    Seen: D; V, L and S pass nine. ``input`` (B, S, H, D) without ``cu_seqlens``, D up to 256. Both tables
    (P, rotary width), in the dtype of ``input``: a value for each element, so that each half repeats the
    other, or, with ``interleaved``, each value appears twice. They may be narrower than a head, whose first
    elements are rotated then. ``discrete``: one int32 position for each token.
    """
    raise NotImplementedError


def moe_softmax_topk(
    input: Tensor,  # noqa: A002
    topk: int,
    normalize: bool = False,
    num_expert_group: int = -1,
    topk_group: int = 0,
    mask: Tensor | None = None,
    normed_by: str = "topk_logit",
    route_scale: float = 1.0,
    reduce_weight: Tensor | None = None,
    expert_id: Tensor | None = None,
    score_bias: Tensor | None = None,
) -> Any:
    """Return (weights float32, ids int32) of the best experts by softmax. Seen: D; V passes five.

    ``input`` dense. A group counts by its best score, also with ``score_bias``, which chooses only.
    """
    raise NotImplementedError


def moe_sigmoid_topk(
    input: Tensor,  # noqa: A002
    topk: int,
    normalize: bool = False,
    num_expert_group: int = -1,
    topk_group: int = 0,
    mask: Tensor | None = None,
    normed_by: str = "topk_logit",
    route_scale: float = 1.0,
    score_bias: Tensor | None = None,
    reduce_weight: Tensor | None = None,
    expert_id: Tensor | None = None,
) -> Any:
    """Return the same by sigmoid. Seen: D. With ``score_bias`` a group counts by the sum of its two best."""
    raise NotImplementedError


def moe_gen_idx(expert_id: Tensor, expert_num: int, return_token2expert_idx: bool = False) -> Any:
    """Sort the rows of all tokens by expert; ids int32, (T, k), all within the experts. Seen: D, V, L.

    Returns (expand_idx, combine_idx, token_count, cusum_token_count), int32: the token of each sorted row;
    the sorted row of each (token, slot); the rows of each expert; their sums, with a zero in front.
    """
    raise NotImplementedError


def moe_expand_input(
    input: Tensor,  # noqa: A002
    gather_idx: Tensor,
    cusum_token_count: Tensor | None = None,
    start_expert_id: int = 0,
    expert_size: int = 0,
    output: Tensor | None = None,
) -> Tensor:
    """Return the rows that ``gather_idx`` names. Seen: D, V."""
    raise NotImplementedError


def group_gemm(
    a: Tensor,
    b: Tensor,
    group_list: Tensor,
    expand_idx: Tensor | None,
    c: Tensor | None,
    alpha: Tensor | None,
    beta: Tensor | None,
    max_in_group_list: int,
    bias: Tensor | None = None,
    d: Tensor | None = None,
    trans_a: bool = False,
    trans_b: bool = True,
    tile_config: dict[str, int] | None = None,
    idx_offset: Tensor | None = None,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """Multiply the rows of each group with its matrix, ``b`` (E, n, k). Seen: D.

    V has the older names ``m_list`` and ``max_m``, which this comparison refuses; L passes seven.
    """
    raise NotImplementedError


def moe_combine_result(
    input: Tensor,  # noqa: A002
    reduce_weight: Tensor,
    gather_ids: Tensor,
    residual: Tensor | None,
    cusum_token_count: Tensor | None,
    start_expert_id: int,
    expert_size: int,
    bias: Tensor | None = None,
    output: Tensor | None = None,
) -> Tensor:
    """Add up the rows of each token by its float32 weights. Seen: D, V; ``bias`` must be None."""
    raise NotImplementedError


def single_query_cached_kv_attn(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor | None,
    out: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    k_cache_quant_scale: Tensor | None,
    v_cache_quant_scale: Tensor | None,
    alibi_slopes: Tensor | None,
    max_context_len: int,
    windows_size_left: int,
    windows_size_right: int,
    softmax_scale: float,
    return_lse: bool = False,
    kv_cache_quant_bit_size: int = -1,
    q_quant_scale: Tensor | None = None,
    out_quant_scale: Tensor | None = None,
    out_dtype: torch.dtype = torch.half,
    compute_dtype: torch.dtype = torch.float,
    head_size_v: int = -1,
    mask: Tensor | None = None,
    cu_seq_q: Tensor | None = None,
    max_seq_q: int = -1,
    sink: Tensor | None = None,
) -> Any:
    """Attention of new tokens over a paged cache; writes ``out`` and returns it, or (out, lse).

    Seen: D; M up to ``kv_cache_quant_bit_size``; V and S name one parameter ``max_contxt_len``, which this
    comparison refuses. ``q`` (B, 1, H, D), ``out`` (B, 1, H, DV), the caches (blocks, KH, block, D or DV) of
    1, 2, 4, ... or 64 keys a block (D), dense (X), all of one dtype: float16, bfloat16, float32 (M). Without
    ``v_cache`` the values are the first elements of the keys. ``block_tables`` (B, most blocks) and
    ``context_lens`` (B,) int32; nothing is said of a sequence without keys. ``sink`` (H,) float32 (D), of
    which no caller and no formula was seen. lse (B, H, 1), natural logarithm (M); whether a sink is in it is
    not said. V never passes more than 128 query heads for one of keys, or 256 in bfloat16.
    """
    raise NotImplementedError


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor | None,
    cu_seq_lens_q: Tensor | None,
    cu_seq_lens_kv: Tensor | None,
    alibi_slope: Tensor | None,
    attn_bias: Tensor | None,
    max_seq_len_q: int,
    max_seq_len_kv: int,
    softmax_scale: float,
    is_causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    compute_dtype: torch.dtype = torch.float,
    return_lse: bool = False,
    block_tables: Tensor | None = None,
    k_quant_scale: Tensor | None = None,
    v_quant_scale: Tensor | None = None,
    q_quant_scale: Tensor | None = None,
    out_quant_scale: Tensor | None = None,
    out_dtype: torch.dtype = torch.half,
    q2k_block_idx: Tensor | None = None,
    q2k_block_num: Tensor | None = None,
    variable_block_sizes: Tensor | None = None,
    q_block_size: int = 256,
    k_block_size: int = 128,
    sink: Tensor | None = None,
) -> Any:
    """Attention of packed sequences; writes ``out`` and returns it, or (out, lse).

    Seen: D; V passes all up to ``out_dtype``, L sixteen. ``q`` (T, H, D), ``k`` and ``v`` (L, KH, D or DV),
    of one dtype: float16, bfloat16, float32 (M), DV may differ from D (D, M). Both sums of lengths (B + 1,)
    int32. V passes a prefix with ``is_causal``: the last query of a sequence sees its last key. A query sees
    ``window_size_left`` keys before its own (D, M, V); V passes -1 to the right. ``out`` must not be ``q``
    (L). Blocks have 16 keys here (D). ``sink`` as above; lse (H, T) (D).
    """
    raise NotImplementedError


SIGNATURES: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        active,
        fused_rms_norm,
        fused_layer_norm,
        apply_rotary,
        moe_softmax_topk,
        moe_sigmoid_topk,
        moe_gen_idx,
        moe_expand_input,
        group_gemm,
        moe_combine_result,
        single_query_cached_kv_attn,
        flash_attention,
    )
}

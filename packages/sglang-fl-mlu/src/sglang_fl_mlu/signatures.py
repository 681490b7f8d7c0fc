"""The functions of ``torch_mlu_ops`` that are called here, with the signatures they are called by.

The library comes from Cambricon and has no public wheel or source, so this is what can be seen of it:

=== ==================================================================================================
D   its Python layer ``_ops.py``, 1.12.1+torch2.11.0, in miznchimaki/domesticated_torch_mlu_ops
V   Cambricon/vllm-mlu, ``vllm_mlu/_mlu_ops.py``: the vendor's own caller
L   DeepLink-org/dlinfer, ``dlinfer/vendor/camb/camb_ops.py``: calls of 1.2
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
    )
}

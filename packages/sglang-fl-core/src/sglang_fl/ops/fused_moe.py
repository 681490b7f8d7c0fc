"""The op ``fused_moe``: the feed-forward layers of the experts chosen for each token."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Bound, Case, Op, Outputs, compute_dtype

__all__ = ["OP", "check_experts", "fused_moe", "present_experts"]


def fused_moe(
    hidden_states: Tensor,
    w13_weight: Tensor,
    w2_weight: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    apply_router_weight_on_input: bool = False,
    routed_scaling_factor: float = 1.0,
    w13_bias: Tensor | None = None,
    w2_bias: Tensor | None = None,
    gemm1_alpha: float | None = None,
    gemm1_limit: float | None = None,
) -> Tensor:
    """Apply to each token the SwiGLU layers of its experts and add them up by their weights.

    With ``gemm1_alpha`` the activation is that of GPT-OSS: ``gate * sigmoid(alpha * gate) * (up + 1)``, the
    gate cut off at ``gemm1_limit``, the other factor at that and at its negative.

    Source: Shazeer et al., "Outrageously Large Neural Networks", 2017; SGLang
    ``srt/layers/moe/fused_moe_native.py``, ``moe_forward_native``, and
    ``srt/layers/moe/moe_runner/triton.py``, which also scales; ``swiglu_gpt_oss_sigmoid_alpha`` in
    ``srt/layers/moe/moe_runner/triton_utils/fused_moe.py``.

    Parameters
    ----------
    hidden_states : Tensor, (T, H), float16, bfloat16, float32 or float64, rows at any stride; not written
    w13_weight : Tensor, (E, 2 * I, H), dtype of ``hidden_states``: the gate's rows, then the other
        factor's; with ``gemm1_alpha`` they take turns; not written
    w2_weight : Tensor, (E, H, I), dtype of ``hidden_states``; not written
    topk_weights : Tensor, (T, k), float32 or the dtype of ``hidden_states``, rows at any stride; not written
    topk_ids : Tensor, (T, k), int32 or int64, rows at any stride; not written. An id below zero, or from E
        on, is no expert and adds nothing, whatever the token holds
    apply_router_weight_on_input : multiply a token by its weight before the layers instead of their
        result after them
    routed_scaling_factor : multiplies the result
    w13_bias : Tensor, (E, 2 * I), float32 or the dtype of ``hidden_states``, in the order of ``w13_weight``'s
        rows; not written
    w2_bias : Tensor, (E, H), the same; multiplied by the token's weight with the rest; not written
    gemm1_alpha, gemm1_limit : both or none; the limit above zero

    Returns
    -------
    Tensor, (T, H), dtype and device of ``hidden_states``, new; products and sums formed in float32. A
    kernel may round the activated rows and each expert's result to the dtype; the reference does not.

    Raises
    ------
    ContractError : shapes that do not fit, one of alpha and limit alone, a limit that is not above zero
    """
    check_experts(
        *(hidden_states, w13_weight, w2_weight, topk_weights, topk_ids),
        *(w13_bias, w2_bias, gemm1_alpha, gemm1_limit),
    )
    tokens, width = hidden_states.shape
    dtype = compute_dtype(hidden_states, topk_weights)
    result = torch.zeros(tokens, width, dtype=dtype, device=hidden_states.device)
    for expert in range(len(w13_weight)):
        token, slot = torch.where(topk_ids == expert)
        if not len(token):
            continue
        x, scale = hidden_states[token].to(dtype), topk_weights[token, slot, None].to(dtype)
        if apply_router_weight_on_input:
            x, scale = x * scale, torch.ones_like(scale)
        h = _activated(_layer(x, w13_weight, w13_bias, expert), gemm1_alpha, gemm1_limit)
        result.index_add_(0, token, _layer(h, w2_weight, w2_bias, expert) * scale)
    return (result * routed_scaling_factor).to(hidden_states.dtype)


def _layer(x: Tensor, weight: Tensor, bias: Tensor | None, expert: int) -> Tensor:
    return F.linear(x, weight[expert].to(x.dtype), None if bias is None else bias[expert].to(x.dtype))


def _activated(gate_up: Tensor, alpha: float | None, limit: float | None) -> Tensor:
    if alpha is None:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    gate, up = gate_up[..., ::2].clamp(max=limit), gate_up[..., 1::2]
    up = up if limit is None else up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


def check_experts(
    hidden_states: Tensor,
    w13_weight: Tensor,
    w2_weight: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    w13_bias: Tensor | None = None,
    w2_bias: Tensor | None = None,
    gemm1_alpha: float | None = None,
    gemm1_limit: float | None = None,
) -> None:
    """Hold the arguments of a call against each other.

    Parameters
    ----------
    hidden_states, w13_weight, w2_weight, topk_weights, topk_ids : see ``fused_moe``
    w13_bias, w2_bias, gemm1_alpha, gemm1_limit : likewise

    Raises
    ------
    ContractError : as ``fused_moe``
    """
    tokens, width = hidden_states.shape
    experts, rows, columns = w13_weight.shape
    if columns != width or w2_weight.shape != (experts, width, rows // 2) or rows % 2:
        raise ContractError(
            f"fused_moe: w13_weight {tuple(w13_weight.shape)} and w2_weight {tuple(w2_weight.shape)} do not "
            f"fit each other and hidden_states {tuple(hidden_states.shape)}"
        )
    if topk_ids.shape != topk_weights.shape or topk_ids.shape[:-1] != (tokens,):
        raise ContractError(
            f"fused_moe: topk_weights {tuple(topk_weights.shape)} and topk_ids {tuple(topk_ids.shape)} are "
            f"not rows for {tokens} tokens"
        )
    for name, bias, size in (("w13_bias", w13_bias, rows), ("w2_bias", w2_bias, width)):
        if bias is not None and bias.shape != (experts, size):
            raise ContractError(f"fused_moe: {name} {tuple(bias.shape)} is not {(experts, size)}")
    if (gemm1_alpha is None) != (gemm1_limit is None) or (gemm1_limit is not None and gemm1_limit <= 0):
        raise ContractError(
            f"fused_moe: gemm1_alpha={gemm1_alpha} and gemm1_limit={gemm1_limit} are not both given, or the "
            f"limit is not above zero"
        )


def _like(
    hidden_states: Tensor,
    w13_weight: Tensor,
    w2_weight: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    apply_router_weight_on_input: bool = False,
    routed_scaling_factor: float = 1.0,
    **options: Any,
) -> Tensor:
    check_experts(hidden_states, w13_weight, w2_weight, topk_weights, topk_ids, **options)
    return torch.empty_like(hidden_states)


def present_experts(topk_weights: Tensor, topk_ids: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Replace ids that are no experts, for a kernel that knows none: each adds nothing.

    Such an id becomes another one of its token, with the weight zero: what that expert makes of the token is
    in the result anyway, so a product that overflows does no harm. A token without any expert goes to the
    first one; its result is to be set to zero.

    Parameters
    ----------
    topk_weights, topk_ids : see ``fused_moe``
    experts : how many there are

    Returns
    -------
    (topk_weights, topk_ids, has_none) : the first two as given, but for ids of no experts; whether a token
        has no expert at all, (T, 1)
    """
    is_absent = (topk_ids < 0) | (topk_ids >= experts)
    present = topk_ids.masked_fill(is_absent, -1)
    another = present.amax(-1, keepdim=True)
    ids = torch.where(is_absent, another.clamp_min(0), topk_ids)
    return topk_weights.masked_fill(is_absent, 0.0), ids, another < 0


def _magnitude(
    truth: Outputs,
    hidden_states: Tensor,
    w13_weight: Tensor,
    w2_weight: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    apply_router_weight_on_input: bool = False,
    routed_scaling_factor: float = 1.0,
    w13_bias: Tensor | None = None,
    w2_bias: Tensor | None = None,
    gemm1_alpha: float | None = None,
    gemm1_limit: float | None = None,
) -> Tensor:
    """Return the size of the terms that each element is the sum of, one dot product inside the other.

    Of terms with random signs: what rounds one of them rounds the others another way. The sum of their sizes
    would be hundreds of times the result, so that in bfloat16 any result would do.
    """
    tokens, width = hidden_states.shape
    result = torch.zeros(tokens, width, dtype=hidden_states.dtype, device=hidden_states.device)
    for expert in range(w13_weight.shape[0]):
        token, slot = torch.where(topk_ids == expert)
        if not len(token):
            continue
        x, scale = hidden_states[token], topk_weights[token, slot, None].to(hidden_states.dtype)
        if apply_router_weight_on_input:
            x, scale = x * scale, torch.ones_like(scale)
        gate_up, size = _sized_layer(x, x, w13_weight, w13_bias, expert)
        # |silu(g)| <= |g| and its slope is below 1.1, for any alpha: the error of a factor goes through as it
        # is. A limit makes both smaller.
        gate, up = size.chunk(2, dim=-1) if gemm1_alpha is None else (size[..., ::2], size[..., 1::2] + 1)
        h = _activated(gate_up, gemm1_alpha, gemm1_limit)
        _, size = _sized_layer(h, gate * up, w2_weight, w2_bias, expert)
        result.index_add_(0, token, size * scale.abs())
    return result * routed_scaling_factor


def _sized_layer(
    x: Tensor, sizes: Tensor, weight: Tensor, bias: Tensor | None, expert: int
) -> tuple[Tensor, Tensor]:
    """Return a layer's results, and how large they are or would be if signs were random."""
    y = _layer(x, weight, bias, expert)
    squares = (
        weight[expert : expert + 1].square(),
        None if bias is None else bias[expert : expert + 1].square(),
    )
    return y, (_layer(sizes.square(), *squares, 0) + y.square()).sqrt()


def _case(
    name: str,
    tokens: int,
    experts: int = 8,
    top_k: int = 2,
    *,
    width: int = 128,
    inner: int = 64,
    padding: int = 0,
    absent: bool = False,
    ids: Sequence[int] = (),
    is_poisoned: bool = False,
    weights_in_dtype: bool = False,
    biased: bool = False,
    **options: bool | float,
) -> Case:
    """Return a case; ``ids``: the experts of every token, else drawn.

    ``is_poisoned``: the weights of experts that no token has are no numbers.
    """

    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(*shape, generator=generator) * scale

        chosen = torch.rand(tokens, experts, generator=generator).argsort(-1)[:, :top_k].to(torch.int32)
        if ids:
            chosen = torch.tensor(ids, dtype=torch.int32).repeat(tokens, 1)
        if absent:
            chosen[::4, 0], chosen[2::4, 0] = -1, experts
        weights = torch.rand(*chosen.shape, generator=generator).softmax(-1)
        hidden_states = normal(tokens, width + padding)
        if absent:  # the last tokens have no expert, and are so large that a product of theirs overflows
            chosen[-2, :], chosen[-1, :] = -1, experts + 3
            hidden_states[-2:] *= 2.0**12
        biases = {}
        if biased:
            biases = {"w13_bias": normal(experts, 2 * inner), "w2_bias": normal(experts, width).to(dtype)}
        layers = (
            normal(experts, 2 * inner, width, scale=width**-0.5).to(dtype),
            normal(experts, width, inner, scale=inner**-0.5).to(dtype),
        )
        if is_poisoned:
            for layer in layers:
                layer[[expert for expert in range(experts) if expert not in chosen]] = torch.nan
        return {
            "hidden_states": hidden_states.to(dtype)[:, :width],
            "w13_weight": layers[0],
            "w2_weight": layers[1],
            "topk_weights": weights.to(dtype) if weights_in_dtype else weights,
            "topk_ids": chosen,
            **biases,
            **options,
        }

    return Case(name, make)


OP = Op(
    fused_moe,
    cases=(
        _case("empty", 0),
        _case("one-token", 1),
        _case("odd-tokens", 37),
        _case("one-expert-each", 9, top_k=1),
        _case("all-experts", 5, experts=4, top_k=4),
        _case("three-of-seven", 9, experts=7, top_k=3),
        _case("many-experts", 33, experts=64, top_k=8),
        _case("hundreds-of-experts", 9, experts=300, top_k=10, width=64, inner=32),
        _case("same-experts-for-all", 300, ids=(5, 2)),
        _case("same-expert-twice", 9, ids=(3, 3, 1)),
        _case("other-experts-not-finite", 9, ids=(3, 6), is_poisoned=True),
        _case("wide", 65, width=512, inner=384),
        _case("large-experts", 3, experts=3, width=1024, inner=512),
        _case("odd-sizes", 9, width=72, inner=40),
        _case("row-strided", 5, padding=64),
        _case("absent-experts", 9, absent=True),
        _case("weights-in-dtype", 9, weights_in_dtype=True),
        _case("scaled", 9, routed_scaling_factor=2.5),
        _case("weight-on-input", 9, top_k=1, apply_router_weight_on_input=True),
        _case("biased", 9, biased=True),
        _case("biased-absent-scaled", 9, absent=True, biased=True, routed_scaling_factor=2.5),
        _case("gpt-oss", 9, experts=4, biased=True, gemm1_alpha=1.702, gemm1_limit=1.25),
    ),
    # The rows before and after the gate, each expert's result and the sum may be rounded: together 0.9 units
    # at most in what was tried. In float32 the order of a sum is free.
    bound=Bound(half=1.5, single=32),
    rows={"hidden_states": 0, "topk_weights": 0, "topk_ids": 0},
    picks_rows=dict.fromkeys(("w13_weight", "w2_weight"), "topk_ids"),
    magnitude=_magnitude,
    like=_like,
    may_depend_on_batch=True,
)

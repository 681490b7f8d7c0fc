"""All that the tests know of the op ``fused_moe``."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang_fl.ops import Outputs
from sglang_fl.ops.fused_moe import fused_moe
from tests.ops import silu_and_mul
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.subject import Arguments, Array, Subject, like


def formula(
    hidden_states: Array,
    w13_weight: Array,
    w2_weight: Array,
    topk_weights: Array,
    topk_ids: Array,
    apply_router_weight_on_input: bool = False,
    routed_scaling_factor: float = 1.0,
    w13_bias: Array | None = None,
    w2_bias: Array | None = None,
    gemm1_alpha: float | None = None,
    gemm1_limit: float | None = None,
) -> tuple[Array, ...]:
    """Go token by token through its experts."""
    result = np.zeros_like(hidden_states)
    for token, x in enumerate(hidden_states):
        for share, expert in zip(topk_weights[token], topk_ids[token], strict=True):
            if not 0 <= expert < len(w13_weight):
                continue
            inner, outer = (share, 1.0) if apply_router_weight_on_input else (1.0, share)
            both = w13_weight[expert] @ (x * inner)
            if w13_bias is not None:
                both = both + w13_bias[expert]
            if gemm1_alpha is None:
                (active,) = silu_and_mul.formula(both)
            else:
                gate, up = np.minimum(both[::2], gemm1_limit), np.clip(both[1::2], -gemm1_limit, gemm1_limit)
                active = gate / (1 + np.exp(-gemm1_alpha * gate)) * (up + 1)
            y = w2_weight[expert] @ active
            if w2_bias is not None:
                y = y + w2_bias[expert]
            result[token] += outer * y
    return (result * routed_scaling_factor,)


def draw(source: Source) -> Drawn:
    tokens, experts = source.number(0, 6), source.number(1, 5)
    width, inner, top_k = source.number(1, 24), source.number(1, 12), source.number(1, experts)
    ids = source.uniform(tokens, experts).argsort(-1)[:, :top_k]
    absent = source.uniform(tokens, top_k) < source.one_of(0.0, 0.4)
    weights = source.uniform(tokens, top_k).softmax(-1)
    arguments = {
        "hidden_states": source.rows(tokens, width),
        "w13_weight": source.normal(experts, 2 * inner, width, scale=width**-0.5).to(source.dtype),
        "w2_weight": source.normal(experts, width, inner, scale=inner**-0.5).to(source.dtype),
        "topk_weights": weights.to(source.one_of(torch.float32, source.dtype)),
        "topk_ids": ids.masked_fill(absent, -1).to(source.one_of(torch.int32, torch.int64)),
    }
    if source.one_of(False, True):
        arguments["routed_scaling_factor"] = 2.5
    if top_k == 1 and source.one_of(False, True):
        arguments["apply_router_weight_on_input"] = True
    if source.one_of(False, True):
        dtype = source.one_of(torch.float32, source.dtype)
        arguments["w13_bias"] = source.normal(experts, 2 * inner).to(dtype)
        arguments["w2_bias"] = source.normal(experts, width).to(dtype)
    if source.one_of(False, True):
        arguments |= {"gemm1_alpha": 1.702, "gemm1_limit": source.one_of(0.5, 7.0)}
    return Drawn(arguments)


def native(arguments: Arguments) -> Any:
    from sglang.srt.layers.moe import MoeRunnerConfig, topk
    from sglang.srt.layers.moe.fused_moe_native import moe_forward_native

    ids = arguments["topk_ids"]
    if arguments.get("apply_router_weight_on_input") or bool((ids < 0).any()) or not ids.numel():
        return None
    w13_weight, w2_weight = arguments["w13_weight"], arguments["w2_weight"]
    biases = {f"{layer}_weight_bias": arguments.get(f"{layer}_bias") for layer in ("w13", "w2")}
    layer = SimpleNamespace(w13_weight=w13_weight, w2_weight=w2_weight, num_experts=len(w13_weight), **biases)
    config = MoeRunnerConfig(
        activation="silu",
        gemm1_alpha=arguments.get("gemm1_alpha"),
        gemm1_clamp_limit=arguments.get("gemm1_limit"),
    )
    chosen = topk.StandardTopKOutput(arguments["topk_weights"], ids, None)
    with torch.compiler.set_stance("force_eager"):  # else GPT-OSS's gate is compiled, for each shape
        result = moe_forward_native(layer, arguments["hidden_states"], chosen, config)
    return result * arguments.get("routed_scaling_factor", 1.0)


def weights_ignored(
    hidden_states: Tensor, w13_weight: Tensor, w2_weight: Tensor, topk_weights: Tensor, topk_ids: Tensor
) -> Outputs:
    ones = torch.ones_like(topk_weights)
    return fused_moe(hidden_states, w13_weight, w2_weight, ones, topk_ids)


@like(fused_moe)
def biases_ignored(*args: Tensor, **options: Any) -> Outputs:
    return fused_moe(*args, **{name: value for name, value in options.items() if "bias" not in name})


@like(fused_moe)
def halves_for_turns(
    hidden_states: Tensor, w13_weight: Tensor, *args: Tensor, gemm1_alpha: float | None = None, **options: Any
) -> Outputs:
    if gemm1_alpha is not None:
        w13_weight = torch.cat([w13_weight[:, 1::2], w13_weight[:, ::2]], dim=1).contiguous()
    return fused_moe(hidden_states, w13_weight, *args, gemm1_alpha=gemm1_alpha, **options)


@like(fused_moe)
def no_limit(*args: Tensor, gemm1_limit: float | None = None, **options: Any) -> Outputs:
    return fused_moe(*args, gemm1_limit=gemm1_limit and 1e30, **options)


@like(fused_moe)
def no_more_than_64_tokens_an_expert(**given: Any) -> Outputs:
    ids = given["topk_ids"].clone()
    for expert in ids.unique():
        ids.view(-1)[(ids.view(-1) == expert).nonzero()[64:]] = -1
    return fused_moe(**given | {"topk_ids": ids})


@like(fused_moe)
def experts_from_256_on_left_out(**given: Any) -> Outputs:
    ids = given["topk_ids"]
    return fused_moe(**given | {"topk_ids": ids.masked_fill(ids >= 256, -1)})


@like(fused_moe)
def expert_named_twice_taken_once(**given: Any) -> Outputs:
    ids = given["topk_ids"]
    is_again = (ids.unsqueeze(2) == ids.unsqueeze(1)).tril(-1).any(2)
    return fused_moe(**given | {"topk_ids": ids.masked_fill(is_again, -1)})


@like(fused_moe)
def all_experts_with_a_weight_of_zero(**given: Any) -> Outputs:
    """What each expert makes of a token is added, of most times zero."""
    return fused_moe(**given) + 0 * given["w2_weight"].sum((0, 2))


@like(fused_moe)
def nothing_in_bfloat16(**given: Any) -> Outputs:
    result = fused_moe(**given)
    return result * 0 if given["hidden_states"].dtype is torch.bfloat16 else result


@like(fused_moe)
def ids_taken_for_int32(**given: Any) -> Outputs:
    ids = given["topk_ids"].contiguous()
    return fused_moe(**given | {"topk_ids": ids.view(torch.int32).flatten()[: ids.numel()].view(ids.shape)})


@like(fused_moe)
def weights_found_in_32_bits(**given: Any) -> Outputs:
    weights = given["w13_weight"]
    result = fused_moe(**given)
    return result * 0 if weights.numel() >= 2**31 else result


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=native,
    wrong={
        "cases": (
            weights_ignored,
            biases_ignored,
            halves_for_turns,
            no_limit,
            no_more_than_64_tokens_an_expert,
            experts_from_256_on_left_out,
            expert_named_twice_taken_once,
            all_experts_with_a_weight_of_zero,
            nothing_in_bfloat16,
        ),
        "edges": (ids_taken_for_int32, weights_found_in_32_bits),
    },
)

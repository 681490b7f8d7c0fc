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
from tests.ops.subject import Arguments, Array, Subject


def formula(
    hidden_states: Array,
    w13_weight: Array,
    w2_weight: Array,
    topk_weights: Array,
    topk_ids: Array,
    apply_router_weight_on_input: bool = False,
    routed_scaling_factor: float = 1.0,
) -> tuple[Array, ...]:
    """Go token by token through its experts."""
    result = np.zeros_like(hidden_states)
    for token, x in enumerate(hidden_states):
        for share, expert in zip(topk_weights[token], topk_ids[token], strict=True):
            if expert < 0:
                continue
            inner, outer = (share, 1.0) if apply_router_weight_on_input else (1.0, share)
            (active,) = silu_and_mul.formula(w13_weight[expert] @ (x * inner))
            result[token] += outer * (w2_weight[expert] @ active)
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
    return Drawn(arguments)


def native(arguments: Arguments) -> Any:
    from sglang.srt.layers.moe import MoeRunnerConfig, topk
    from sglang.srt.layers.moe.fused_moe_native import moe_forward_native

    ids = arguments["topk_ids"]
    if arguments.get("apply_router_weight_on_input") or bool((ids < 0).any()) or not ids.numel():
        return None
    w13_weight, w2_weight = arguments["w13_weight"], arguments["w2_weight"]
    layer = SimpleNamespace(w13_weight=w13_weight, w2_weight=w2_weight, num_experts=len(w13_weight))
    chosen = topk.StandardTopKOutput(arguments["topk_weights"], ids, None)
    result = moe_forward_native(layer, arguments["hidden_states"], chosen, MoeRunnerConfig(activation="silu"))
    return result * arguments.get("routed_scaling_factor", 1.0)


def weights_ignored(
    hidden_states: Tensor, w13_weight: Tensor, w2_weight: Tensor, topk_weights: Tensor, topk_ids: Tensor
) -> Outputs:
    ones = torch.ones_like(topk_weights)
    return fused_moe(hidden_states, w13_weight, w2_weight, ones, topk_ids)


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=native,
    wrong={
        "cases": (weights_ignored,),
    },
)

"""All that the tests know of the op ``topk_softmax``."""

import numpy as np
from torch import Tensor

from sglang_fl.ops import Outputs
from sglang_fl.ops.topk_softmax import topk_softmax
from tests.ops.shared.routing import draw_routing, native_of, route
from tests.ops.subject import Array, Subject


def formula(
    router_logits: Array,
    top_k: int,
    renormalize: bool,
    correction_bias: Array | None = None,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
    routed_scaling_factor: float = 1.0,
    shared_expert_weight: float | None = None,
) -> tuple[Array, ...]:
    powers = np.exp(router_logits)
    scores = powers / powers.sum(axis=-1, keepdims=True)
    groups = (num_expert_group, topk_group, routed_scaling_factor, shared_expert_weight)
    return route(scores, top_k, renormalize, correction_bias, *groups)


def next_experts(router_logits: Tensor, top_k: int, renormalize: bool) -> Outputs:
    weights, ids = topk_softmax(router_logits, top_k, renormalize)
    return weights, ids + 1


def always_renormalizes(router_logits: Tensor, top_k: int, renormalize: bool) -> Outputs:
    return topk_softmax(router_logits, top_k, True)


def ids_in_int64(router_logits: Tensor, top_k: int, renormalize: bool) -> Outputs:
    weights, ids = topk_softmax(router_logits, top_k, renormalize)
    return weights, ids.long()


def option_ignored(
    router_logits: Tensor, top_k: int, renormalize: bool, *, routed_scaling_factor: float = 1.0
) -> Outputs:
    return topk_softmax(router_logits, top_k, renormalize)


SUBJECT = Subject(
    formula=formula,
    draw=draw_routing,
    native=native_of("softmax"),
    wrong={
        "cases": (
            next_experts,
            always_renormalizes,
            ids_in_int64,
            option_ignored,
        ),
    },
)

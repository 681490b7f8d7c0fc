"""All that the tests know of the op ``topk_sigmoid``."""

import numpy as np
from torch import Tensor

from sglang_fl.ops import Outputs
from sglang_fl.ops.topk_sigmoid import topk_sigmoid
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
    groups = (num_expert_group, topk_group, routed_scaling_factor, shared_expert_weight)
    return route(1 / (1 + np.exp(-router_logits)), top_k, renormalize, correction_bias, *groups)


def scores_are_a_softmax(router_logits: Tensor, top_k: int, renormalize: bool) -> Outputs:
    return topk_softmax(router_logits, top_k, renormalize)


def shared_expert_is_scaled(
    router_logits: Tensor,
    top_k: int,
    renormalize: bool,
    *,
    routed_scaling_factor: float = 1.0,
    shared_expert_weight: float | None = None,
) -> Outputs:
    factor = routed_scaling_factor
    weight = None if shared_expert_weight is None else shared_expert_weight * factor
    return topk_sigmoid(
        router_logits, top_k, renormalize, routed_scaling_factor=factor, shared_expert_weight=weight
    )


SUBJECT = Subject(
    formula=formula,
    draw=draw_routing,
    native=native_of("sigmoid"),
    wrong={
        "cases": (scores_are_a_softmax, shared_expert_is_scaled),
    },
)

"""What the routers share."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tests.ops.shared.drawing import Drawn, Source
from tests.ops.subject import Arguments, Array

__all__ = ["draw_routing", "native_of", "route"]


def route(
    scores: Array,
    top_k: int,
    renormalize: bool,
    correction_bias: Array | None,
    num_expert_group: int | None,
    topk_group: int | None,
    routed_scaling_factor: float,
    shared_expert_weight: float | None,
) -> tuple[Array, ...]:
    """Choose token by token, by sorting."""
    weights, ids = np.zeros((len(scores), top_k)), np.zeros((len(scores), top_k), dtype=np.int32)
    for token, row in enumerate(scores):
        choice = row if correction_bias is None else row + correction_bias
        allowed = np.arange(len(row))
        if num_expert_group is not None:
            groups = np.split(allowed, num_expert_group)
            best = 1 if correction_bias is None else 2
            worth = [np.sort(choice[group])[-best:].sum() for group in groups]
            allowed = np.concatenate([groups[i] for i in np.argsort(worth)[-topk_group:]])
        chosen = np.sort(allowed[np.argsort(choice[allowed])[-top_k:]])
        share = row[chosen] / (row[chosen].sum() + 1e-20 if renormalize else 1.0)
        weights[token], ids[token] = share * routed_scaling_factor, chosen
    if shared_expert_weight is not None:
        weights = np.column_stack((weights, np.full(len(scores), shared_expert_weight)))
        ids = np.column_stack((ids, np.full(len(scores), scores.shape[1], dtype=np.int32)))
    return weights, ids


def draw_routing(source: Source) -> Drawn:
    """Return logits that no rounding brings into another order: each row permutes the same levels."""
    groups = source.one_of(None, 2, 4)
    experts = (groups or 1) * source.number(2, 8)
    kept = groups and source.number(1, groups)
    eligible = experts // groups * kept if groups and kept else experts
    ranks = source.uniform(source.number(0, 6), experts).argsort(-1)
    arguments: dict[str, Any] = {
        "router_logits": torch.linspace(-2, 2, experts)[ranks].to(source.dtype),
        "top_k": source.number(1, eligible),
        "renormalize": source.one_of(False, True),
        "routed_scaling_factor": source.one_of(1.0, 2.5),
    }
    if groups:
        arguments |= {"num_expert_group": groups, "topk_group": kept}
    if source.one_of(False, True):
        arguments["correction_bias"] = 0.3 * source.normal(experts)
    if source.one_of(False, True):
        arguments["shared_expert_weight"] = source.one_of(1.0, 0.4)
    return Drawn(arguments)


def native_of(scores: str) -> Callable[[Arguments], Any]:
    """Return SGLang's own routing by these scores."""

    def native(arguments: Arguments) -> Any:
        from sglang.srt.layers.moe import topk

        logits, bias = arguments["router_logits"], arguments.get("correction_bias")
        shared = arguments.get("shared_expert_weight")
        columns = arguments["top_k"] + (shared is not None)
        given = (logits, logits, *((bias,) if bias is not None else ()), columns)
        given = (*given, arguments["renormalize"])
        factor = arguments["routed_scaling_factor"]
        if not len(logits) or (shared is not None and not _has_shared_expert(arguments)):
            return None  # it cannot form groups of no tokens
        if "num_expert_group" not in arguments:
            # The order of these two differs from that of the grouped ones.
            plain = (logits, logits, arguments["top_k"], arguments["renormalize"], bias, scores)
            weights, ids = topk.fused_topk_torch_native(*plain)
            return weights.float() * factor, ids.to(torch.int32)
        groups = {
            "num_expert_group": arguments["num_expert_group"],
            "topk_group": arguments["topk_group"],
            "routed_scaling_factor": factor,
            "apply_routed_scaling_factor_on_output": True,
            "num_fused_shared_experts": 0 if shared is None else 1,
        }
        if bias is None:
            weights, ids = topk.grouped_topk_gpu(*given, **groups, scoring_func=scores)
        elif scores == "sigmoid":
            weights, ids = topk.biased_grouped_topk_impl(*given, **groups)
        else:
            return None
        return weights * (factor if _loses_factor() and not arguments["renormalize"] else 1), ids

    return native


def _has_shared_expert(arguments: Arguments) -> bool:
    """Whether SGLang's plain routing has a shared expert with this weight: in groups, not scaled by a sum."""
    return (
        "num_expert_group" in arguments
        and arguments["shared_expert_weight"] == 1.0
        and arguments["renormalize"]
        and arguments["top_k"] < arguments["router_logits"].shape[1]
    )


def _loses_factor() -> bool:
    """Whether grouped routing drops the factor where it does not renormalise, a mistake to 0.5.22."""
    from packaging.version import Version

    from sglang_fl.sglang_adapter import seams

    return seams.installed_version() < Version("0.5.23")

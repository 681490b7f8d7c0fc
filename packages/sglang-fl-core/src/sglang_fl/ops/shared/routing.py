"""What the routers of mixtures of experts share: choosing experts by their scores."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Case, Outputs

__all__ = ["as_good", "by_expert", "choose_experts", "routing_cases"]

#: Keeps the division defined where all chosen scores have underflowed.
TINY = 1e-20


def choose_experts(
    op: str,
    scores: Tensor,
    top_k: int,
    renormalize: bool,
    correction_bias: Tensor | None,
    num_expert_group: int | None,
    topk_group: int | None,
    routed_scaling_factor: float,
) -> tuple[Tensor, Tensor]:
    """Choose the ``top_k`` experts of each token; see ``topk_softmax``.

    Parameters
    ----------
    op : for error messages
    scores : Tensor, (T, E), float32 or float64

    Raises
    ------
    ContractError : see ``topk_softmax``
    """
    experts = scores.shape[-1]
    if correction_bias is not None and correction_bias.shape != (experts,):
        raise ContractError(
            f"{op}: correction_bias {tuple(correction_bias.shape)} is not one number for each of {experts} "
            f"experts"
        )
    choice = scores if correction_bias is None else scores + correction_bias.to(scores.dtype)
    eligible = experts
    if num_expert_group is not None:
        if topk_group is None or experts % num_expert_group or topk_group > num_expert_group:
            raise ContractError(
                f"{op}: {experts} experts cannot be taken from {topk_group} of {num_expert_group} groups"
            )
        best = 1 if correction_bias is None else 2
        choice = _within_groups(choice, num_expert_group, topk_group, best)
        eligible = experts // num_expert_group * topk_group
    if not 0 < top_k <= eligible:
        raise ContractError(f"{op}: top_k {top_k} is not between 1 and the {eligible} eligible experts")
    ids = choice.topk(top_k, dim=-1).indices
    weights = scores.gather(-1, ids)
    if renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + TINY)
    return weights * routed_scaling_factor, ids.to(torch.int32)


def _within_groups(choice: Tensor, groups: int, chosen: int, best: int) -> Tensor:
    """Leave only the experts of the best groups; a group counts by the sum of its ``best`` experts."""
    grouped = choice.view(len(choice), groups, choice.shape[-1] // groups)
    worth = grouped.topk(min(best, grouped.shape[-1]), dim=-1).values.sum(-1)
    in_chosen = torch.zeros_like(worth, dtype=torch.bool)
    in_chosen.scatter_(-1, worth.topk(chosen, dim=-1).indices, True)
    return grouped.masked_fill(~in_chosen.unsqueeze(-1), -torch.inf).flatten(-2)


def by_expert(outputs: Outputs, arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Bring weights and ids into the order of the ids, which is not part of the contract."""
    weights, ids = outputs
    order = ids.long().argsort(-1)
    return weights.gather(-1, order), ids.gather(-1, order)


def as_good(results: tuple[Tensor, ...], truth: tuple[Tensor, ...], arguments: Mapping[str, Any]) -> bool:
    """Whether other experts were chosen than those of the truth, but of the very same logits and bias."""
    (weights, ids), (_, true_ids) = results, truth
    if ids.shape != true_ids.shape or torch.equal(ids.long(), true_ids.long()):
        return False
    chosen = ids.long().sort(-1).values
    if (chosen[..., 1:] == chosen[..., :-1]).any() or not weights.isfinite().all():
        return False
    bias = arguments.get("correction_bias")
    known = [
        arguments["router_logits"],
        *([] if bias is None else [bias.expand_as(arguments["router_logits"])]),
    ]
    return all(
        torch.equal(
            scores.gather(-1, ids.long()).sort(-1).values, scores.gather(-1, true_ids.long()).sort(-1).values
        )
        for scores in known
    )


def routing_cases(*, is_softmax: bool) -> tuple[Case, ...]:
    """Return sample inputs whose scores are far enough apart that rounding changes no choice."""
    grouped = {"num_expert_group": 8, "topk_group": 4}
    bias = 0.05
    cases = [
        _case("empty", 0, 64, 8),
        _case("one-token", 1, 64, 8),
        _case("eight-experts", 37, 8, 2),
        _case("as-scored", 37, 64, 6, renormalize=False),
        _case("many-tokens", 129, 128, 8),
        _case("odd-experts", 9, 60, 4),
        _case("all-experts", 5, 8, 8),
        _case("row-strided", 5, 64, 8, padding=32),
        _case("scaled", 9, 64, 6, options={"routed_scaling_factor": 2.5}),
        _case("grouped", 9, 64, 6, options=grouped),
        _case("biased", 9, 64, 6, bias=bias),
    ]
    if not is_softmax:
        cases += [
            _case("grouped-biased", 37, 256, 8, bias=bias, options=grouped),
            _case(
                "grouped-biased-scaled",
                *(9, 256, 8),
                bias=bias,
                options={**grouped, "routed_scaling_factor": 2.5},
            ),
        ]
    return tuple(cases)


def _case(
    name: str,
    tokens: int,
    experts: int,
    top_k: int,
    *,
    renormalize: bool = True,
    padding: int = 0,
    bias: float = 0.0,
    options: Mapping[str, float] | None = None,
) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        # Each row is a permutation of equally spaced logits: neighbours differ by 1/32 and more, so
        # that no rounding swaps two.
        levels = torch.linspace(-4, 4, experts + padding)
        ranks = torch.rand(tokens, experts + padding, generator=generator).argsort(-1)
        arguments: Arguments = {
            "router_logits": levels[ranks].to(dtype)[:, :experts],
            "top_k": top_k,
            "renormalize": renormalize,
        }
        if bias:
            arguments["correction_bias"] = bias * torch.randn(experts, generator=generator)
        return arguments | dict(options or {})

    return Case(name, make)

"""What the routers of mixtures of experts share: choosing experts by their scores."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Bound, Case, Outputs

__all__ = [
    "ROUTING_BOUND",
    "by_expert",
    "choose_experts",
    "is_as_good_a_choice",
    "renormalized",
    "routing_cases",
    "why_no_choice",
]

#: Keeps the division defined where all chosen scores have underflowed.
TINY = 1e-20
#: The weights are float32 for any input; a fast exp rounds its argument, in the cases at most 8.
ROUTING_BOUND = Bound(half=32, single=32)


def choose_experts(
    op: str,
    scores: Tensor,
    top_k: int,
    renormalize: bool,
    correction_bias: Tensor | None,
    num_expert_group: int | None,
    topk_group: int | None,
    routed_scaling_factor: float,
    shared_expert_weight: float | None,
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
        weights = renormalized(weights)
    weights, ids = weights * routed_scaling_factor, ids.to(torch.int32)
    if shared_expert_weight is not None:
        weights, ids = (
            torch.nn.functional.pad(part, (0, 1), value=value)
            for part, value in ((weights, shared_expert_weight), (ids, experts))
        )
    return weights, ids


def _within_groups(choice: Tensor, groups: int, chosen: int, best: int) -> Tensor:
    """Leave only the experts of the best groups; a group counts by the sum of its ``best`` experts."""
    grouped = choice.view(len(choice), groups, choice.shape[-1] // groups)
    worth = grouped.topk(min(best, grouped.shape[-1]), dim=-1).values.sum(-1)
    in_chosen = torch.zeros_like(worth, dtype=torch.bool)
    in_chosen.scatter_(-1, worth.topk(chosen, dim=-1).indices, True)
    return grouped.masked_fill(~in_chosen.unsqueeze(-1), -torch.inf).flatten(-2)


def renormalized(weights: Tensor) -> Tensor:
    """Divide the weights of each token by their sum; where all have underflowed to zero they stay zero."""
    return weights / (weights.sum(-1, keepdim=True) + TINY)


def why_no_choice(outputs: tuple[Tensor, ...], arguments: Mapping[str, Any]) -> str | None:
    """Say what is wrong with a choice of experts whatever the logits are: ids of none, or one twice."""
    ids, experts = outputs[1].long().cpu(), arguments["router_logits"].shape[-1]
    if arguments.get("shared_expert_weight") is not None:
        if (ids[:, -1] != experts).any():
            return f"the last expert of a token is not the shared one, {experts}"
        ids = ids[:, :-1]
    ids = ids.sort(-1).values
    if not ids.numel():
        return None
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= experts:
        return f"the ids reach from {least} to {most}, the experts from 0 to {experts - 1}"
    twice = (ids[..., 1:] == ids[..., :-1]).any(-1).sum()
    return f"{twice} tokens have an expert twice" if twice else None


def by_expert(
    outputs: Outputs, arguments: Arguments, *, score: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Bring weights and ids into a form in which all that the contract leaves open is the same.

    The order is that of the ids; of experts with one score in float32 and one bias the first ones are named;
    and rows whose scores are no numbers are set to zero.
    """
    weights, ids = outputs
    scores = score(arguments["router_logits"].float())
    named = _first_of_equals(ids.long(), scores, arguments.get("correction_bias"))
    order = named.argsort(-1)
    is_open = scores.isnan().any(-1, keepdim=True)
    weights, ids = weights.gather(-1, order), named.gather(-1, order).to(ids.dtype)
    return weights.masked_fill(is_open, 0), ids.masked_fill(is_open, 0)


def is_as_good_a_choice(
    results: tuple[Tensor, ...],
    truth: tuple[Tensor, ...],
    arguments: Mapping[str, Any],
    *,
    score: Callable[[Tensor], Tensor],
) -> bool:
    """Whether experts that differ from the truth's are chosen among scores that only rounding tells apart.

    A model of random weights may give all experts nearly the same score. Which is greater then depends on how
    a kernel rounds it, and the contract says no more than that it does so in float32.

    Parameters
    ----------
    results, truth : as ``by_expert`` gives them
    score : makes float64 scores of float64 logits
    """
    weights, ids = results
    if weights.shape != truth[0].shape or ids.shape != truth[1].shape:
        return False
    numbers = ~score(arguments["router_logits"].float()).isnan().any(-1)
    weights, ids = weights[numbers], ids[numbers].long()
    scores = score(arguments["router_logits"][numbers].double())
    shared = arguments.get("shared_expert_weight")
    if shared is not None:  # ``why_no_choice`` has looked at its number
        if (weights[:, -1].double() - shared).abs().gt(_rounding(weights[:, -1])).any():
            return False
        weights, ids = weights[:, :-1], ids[:, :-1]
    expected = scores.gather(-1, ids)
    if arguments["renormalize"]:
        expected = renormalized(expected)
    expected = expected * arguments.get("routed_scaling_factor", 1.0)
    is_right = (weights.double() - expected).abs() <= _rounding(expected)
    return bool(is_right.all() and _could_be_chosen(scores, ids, arguments).all())


def _rounding(numbers: Tensor) -> Tensor:
    """Return how far a kernel's float32 may be from such numbers."""
    info = torch.finfo(torch.float32)
    return ROUTING_BOUND.single * info.eps * numbers.abs().double() + info.tiny


def _could_be_chosen(scores: Tensor, ids: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """Return of each token whether no expert, and no group, that was left out is better beyond rounding."""
    bias = arguments.get("correction_bias")
    choice, slack = scores, _rounding(scores)
    if bias is not None:
        choice, slack = scores + bias.double(), slack + _rounding(bias) + _rounding(scores + bias)
    groups, most = arguments.get("num_expert_group") or 1, arguments.get("topk_group") or 1
    low, high = (
        (choice + sign * slack).view(len(scores), groups, choice.shape[-1] // groups) for sign in (-1, 1)
    )
    is_chosen = torch.zeros_like(choice, dtype=torch.bool).scatter_(-1, ids, True).view(low.shape)
    best = min(1 if bias is None else 2, low.shape[-1])
    worst_case, best_case = (
        bound.topk(best, dim=-1).values.sum(-1) for bound in (low, high)
    )  # of each group
    surely_better = (worst_case.unsqueeze(-2) > best_case.unsqueeze(-1)).sum(-1)  # than this group
    perhaps_better = (best_case.unsqueeze(-2) >= worst_case.unsqueeze(-1)).sum(-1) - 1
    is_used = is_chosen.any(-1)
    groups_fit = (~is_used | (surely_better < most)).all(-1) & (is_used.sum(-1) <= most)
    is_eligible = (is_used | (perhaps_better < most)).unsqueeze(-1)
    best_left = low.masked_fill(is_chosen | ~is_eligible, -torch.inf).flatten(-2).amax(-1)
    worst_chosen = high.masked_fill(~is_chosen, torch.inf).flatten(-2).amin(-1)
    return groups_fit & (worst_chosen >= best_left)


def _first_of_equals(ids: Tensor, scores: Tensor, bias: Tensor | None) -> Tensor:
    """Return for the nth chosen of equal experts the nth of them all; an id of no expert stays."""
    known = ids.clamp(0, scores.shape[-1] - 1)
    is_equal = scores.gather(-1, known).unsqueeze(-1) == scores.unsqueeze(-2)  # (T, k, E)
    if bias is not None:
        is_equal &= bias[known].unsqueeze(-1) == bias
    among_chosen = is_equal.gather(-1, known.unsqueeze(-2).expand(*known.shape, known.shape[-1]))
    place = (among_chosen & (known.unsqueeze(-2) < known.unsqueeze(-1))).sum(-1)
    is_nth = is_equal & (is_equal.cumsum(-1) == place.unsqueeze(-1) + 1)
    return torch.where(known == ids, is_nth.to(torch.int8).argmax(-1), ids)


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
        _case("shared-expert", 9, 64, 6, options={"shared_expert_weight": 0.4, "routed_scaling_factor": 2.5}),
        _case("shared-expert-as-scored", 5, 64, 8, renormalize=False, options={"shared_expert_weight": 1.0}),
        _underflowing("underflowing", 5, 8, 2, is_softmax),
        _underflowing("underflowing-grouped", 5, 64, 6, is_softmax, grouped),
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
            _case(
                "grouped-biased-shared-expert",
                *(37, 256, 8),
                bias=bias,
                options={**grouped, "routed_scaling_factor": 2.5, "shared_expert_weight": 1.0},
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


def _underflowing(
    name: str,
    tokens: int,
    experts: int,
    top_k: int,
    is_softmax: bool,
    options: Mapping[str, float] | None = None,
) -> Case:
    """Return a case in which all chosen scores are zero in float32; the first token's are not."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        ordinary = _case("", 1, experts, top_k).make(dtype, generator)["router_logits"]
        low = torch.full((tokens - 1, experts), -200.0, dtype=dtype)
        bias = torch.zeros(experts)
        if is_softmax:  # one expert has all the score, and a bias that keeps it from being chosen
            low[:, 0], bias[0] = 0.0, -1000.0
        arguments: Arguments = {
            "router_logits": torch.cat((ordinary, low)),
            "top_k": top_k,
            "renormalize": True,
            "correction_bias": bias,
        }
        return arguments | dict(options or {})

    return Case(name, make)

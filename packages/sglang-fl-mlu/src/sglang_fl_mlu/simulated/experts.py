"""The functions for mixtures of experts of the emulated ``torch_mlu_ops``."""

from typing import Any

import torch
from torch import Tensor

from sglang_fl.conformance.simulated import emulated
from sglang_fl_mlu.simulated.demands import demand, demand_defaults, demand_dense, demand_like

__all__ = [
    "group_gemm",
    "moe_combine_result",
    "moe_expand_input",
    "moe_gen_idx",
    "moe_sigmoid_topk",
    "moe_softmax_topk",
]


@emulated
def moe_softmax_topk(
    input: Tensor,  # noqa: A002 - the library's name, here and below
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
    """Choose experts by softmax; a group counts by its best."""
    demand_dense("moe_softmax_topk", input=input)
    demand_defaults(
        "moe_softmax_topk",
        mask=mask is None,
        normed_by=normed_by == "topk_logit",
        outputs=reduce_weight is None,
    )
    scores = torch.softmax(input.float(), dim=-1)
    choice = scores if score_bias is None else scores + score_bias.float()
    if num_expert_group > 1:
        choice = _of_best_groups(choice, num_expert_group, topk_group, best=1)
    return _chosen(scores, choice, topk, normalize, route_scale)


@emulated
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
    """Choose experts by sigmoid; with a bias a group counts by its two best."""
    demand_dense("moe_sigmoid_topk", input=input)
    demand_defaults(
        "moe_sigmoid_topk",
        mask=mask is None,
        normed_by=normed_by == "topk_logit",
        outputs=reduce_weight is None,
    )
    scores = torch.sigmoid(input.float())
    choice = scores if score_bias is None else scores + score_bias.float()
    if num_expert_group > 1:
        choice = _of_best_groups(choice, num_expert_group, topk_group, best=1 if score_bias is None else 2)
    return _chosen(scores, choice, topk, normalize, route_scale)


def _of_best_groups(choice: Tensor, groups: int, chosen: int, best: int) -> Tensor:
    grouped = choice.view(*choice.shape[:-1], groups, -1)
    worth = grouped.topk(best, dim=-1).values.sum(-1)
    lost = worth.argsort(dim=-1, descending=True)[..., chosen:]
    return grouped.scatter(-2, lost.unsqueeze(-1).expand(*lost.shape, grouped.shape[-1]), -torch.inf).flatten(
        -2
    )


def _chosen(
    scores: Tensor, choice: Tensor, topk: int, normalize: bool, scale: float
) -> tuple[Tensor, Tensor]:
    ids = choice.topk(topk, dim=-1).indices
    weights = scores.gather(-1, ids)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * scale, ids.to(torch.int32)


@emulated
def moe_gen_idx(expert_id: Tensor, expert_num: int, return_token2expert_idx: bool = False) -> Any:
    """Sort the rows of all tokens by expert."""
    demand_defaults("moe_gen_idx", return_token2expert_idx=not return_token2expert_idx)
    demand_like("moe_gen_idx", torch.int32, expert_id.shape, expert_id=expert_id)
    is_within = bool(((expert_id >= 0) & (expert_id < expert_num)).all())
    demand(is_within, f"moe_gen_idx: expert_id outside of 0 to {expert_num - 1}")
    order = expert_id.flatten().argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    count = torch.bincount(expert_id.flatten(), minlength=expert_num)
    sums = torch.cat((count.new_zeros(1), count.cumsum(0)))
    token = order // expert_id.shape[-1]
    return tuple(result.to(torch.int32) for result in (token, place, count, sums))


@emulated
def moe_expand_input(
    input: Tensor,  # noqa: A002
    gather_idx: Tensor,
    cusum_token_count: Tensor | None = None,
    start_expert_id: int = 0,
    expert_size: int = 0,
    output: Tensor | None = None,
) -> Tensor:
    """Gather rows."""
    demand_defaults("moe_expand_input", cusum_token_count=cusum_token_count is None, output=output is None)
    demand_dense("moe_expand_input", input=input)
    demand_like("moe_expand_input", torch.int32, gather_idx.shape, gather_idx=gather_idx)
    return input[gather_idx.long()]


@emulated
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
    """Multiply the rows of each group with its matrix."""
    unused = (expand_idx, c, alpha, beta, bias, d, tile_config, idx_offset, output_dtype)
    is_plain = all(value is None for value in unused) and not trans_a and trans_b
    demand_defaults("group_gemm", options=is_plain)
    demand_like("group_gemm", torch.int32, (len(b),), group_list=group_list)
    demand(a.dtype is b.dtype, f"group_gemm: a is {a.dtype}, b is {b.dtype}")
    sizes = group_list.tolist()
    demand(sum(sizes) == len(a), f"group_gemm: groups of {sum(sizes)} rows, but there are {len(a)}")
    demand(max(sizes) <= max_in_group_list, f"group_gemm: a group exceeds {max_in_group_list}")
    parts = zip(torch.split(a.float(), sizes), b.float(), strict=True)
    return torch.cat([rows @ matrix.t() for rows, matrix in parts]).to(a.dtype)


@emulated
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
    """Add up the rows of each token by its weights."""
    unused = (residual, cusum_token_count, bias, output)
    demand_defaults("moe_combine_result", options=all(value is None for value in unused))
    demand_like("moe_combine_result", torch.float32, reduce_weight.shape, reduce_weight=reduce_weight)
    demand_like("moe_combine_result", torch.int32, (reduce_weight.numel(),), gather_ids=gather_ids)
    rows = input.float()[gather_ids.long()].view(*reduce_weight.shape, -1)
    return (rows * reduce_weight.unsqueeze(-1)).sum(1).to(input.dtype)

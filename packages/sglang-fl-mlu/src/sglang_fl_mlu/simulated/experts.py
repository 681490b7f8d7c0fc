"""The functions for mixtures of experts of the emulated ``torch_mlu_ops``."""

import torch
from torch import Tensor

from sglang_fl_mlu import signatures
from sglang_fl_mlu.simulated.demands import demand, demand_dense, demand_like, emulates

__all__ = [
    "group_gemm",
    "moe_combine_result",
    "moe_expand_input",
    "moe_gen_idx",
    "moe_sigmoid_topk",
    "moe_softmax_topk",
]


@emulates(signatures.moe_softmax_topk)
def moe_softmax_topk(
    input: Tensor,  # noqa: A002 - the library's name, here and below
    topk: int,
    normalize: bool,
    num_expert_group: int,
    topk_group: int,
    route_scale: float,
    score_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Choose experts by softmax; a group counts by its best."""
    demand_dense("moe_softmax_topk", input=input)
    scores = torch.softmax(input.float(), dim=-1)
    groups = (num_expert_group, topk_group, 1)
    return _chosen(scores, score_bias, topk, groups, normalize, route_scale)


@emulates(signatures.moe_sigmoid_topk)
def moe_sigmoid_topk(
    input: Tensor,  # noqa: A002
    topk: int,
    normalize: bool,
    num_expert_group: int,
    topk_group: int,
    route_scale: float,
    score_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Choose experts by sigmoid; with a bias a group counts by its two best."""
    demand_dense("moe_sigmoid_topk", input=input)
    scores = torch.sigmoid(input.float())
    groups = (num_expert_group, topk_group, 1 if score_bias is None else 2)
    return _chosen(scores, score_bias, topk, groups, normalize, route_scale)


def _chosen(
    scores: Tensor,
    score_bias: Tensor | None,
    topk: int,
    groups: tuple[int, int, int],
    normalize: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return weights and ids; ``groups`` are how many, how many are kept, how many experts one counts by."""
    choice = scores if score_bias is None else scores + score_bias.float()
    if groups[0] > 1:
        choice = _of_best_groups(choice, *groups)
    ids = choice.topk(topk, dim=-1).indices
    weights = scores.gather(-1, ids)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * scale, ids.to(torch.int32)


def _of_best_groups(choice: Tensor, groups: int, kept: int, best: int) -> Tensor:
    grouped = choice.view(*choice.shape[:-1], groups, -1)
    worth = grouped.topk(best, dim=-1).values.sum(-1)
    lost = worth.argsort(dim=-1, descending=True)[..., kept:]
    without = grouped.scatter(-2, lost.unsqueeze(-1).expand(*lost.shape, grouped.shape[-1]), -torch.inf)
    return without.flatten(-2)


@emulates(signatures.moe_gen_idx)
def moe_gen_idx(expert_id: Tensor, expert_num: int) -> tuple[Tensor, ...]:
    """Sort the rows of all tokens by expert."""
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


@emulates(signatures.moe_expand_input)
def moe_expand_input(input: Tensor, gather_idx: Tensor) -> Tensor:  # noqa: A002
    """Gather rows."""
    demand_dense("moe_expand_input", input=input)
    demand_like("moe_expand_input", torch.int32, gather_idx.shape, gather_idx=gather_idx)
    return input[gather_idx.long()]


@emulates(signatures.group_gemm)
def group_gemm(a: Tensor, b: Tensor, group_list: Tensor, max_in_group_list: int) -> Tensor:
    """Multiply the rows of each group with its matrix."""
    demand_like("group_gemm", torch.int32, (len(b),), group_list=group_list)
    demand(a.dtype is b.dtype, f"group_gemm: a is {a.dtype}, b is {b.dtype}")
    sizes = group_list.tolist()
    demand(sum(sizes) == len(a), f"group_gemm: groups of {sum(sizes)} rows, but there are {len(a)}")
    demand(max(sizes) <= max_in_group_list, f"group_gemm: a group exceeds {max_in_group_list}")
    parts = zip(torch.split(a.float(), sizes), b.float(), strict=True)
    return torch.cat([rows @ matrix.t() for rows, matrix in parts]).to(a.dtype)


@emulates(signatures.moe_combine_result)
def moe_combine_result(
    input: Tensor,  # noqa: A002
    reduce_weight: Tensor,
    gather_ids: Tensor,
    start_expert_id: int,
    expert_size: int,
) -> Tensor:
    """Add up the rows of each token by its weights."""
    demand(start_expert_id == 0 < expert_size, "moe_combine_result: all experts must be here")
    demand_like("moe_combine_result", torch.float32, reduce_weight.shape, reduce_weight=reduce_weight)
    demand_like("moe_combine_result", torch.int32, (reduce_weight.numel(),), gather_ids=gather_ids)
    rows = input.float()[gather_ids.long()].view(*reduce_weight.shape, -1)
    return (rows * reduce_weight.unsqueeze(-1)).sum(1).to(input.dtype)

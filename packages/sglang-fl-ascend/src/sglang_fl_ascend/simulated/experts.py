"""The emulated operators for mixtures of experts."""

from typing import Any

import torch
from torch import Tensor

__all__ = [
    "demand",
    "npu_grouped_matmul",
    "npu_moe_finalize_routing",
    "npu_moe_gating_top_k",
    "npu_moe_gating_top_k_softmax",
    "npu_moe_init_routing_v2",
]


def demand(holds: bool, otherwise: str) -> None:
    """Raise ``RuntimeError`` unless it holds."""
    if not holds:
        raise RuntimeError(otherwise)


def npu_moe_gating_top_k_softmax(
    x: Tensor, finished: Tensor | None = None, k: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax, then the best; the third result says where each row came from."""
    demand(finished is None, "npu_moe_gating_top_k_softmax: finished is not emulated")
    demand(0 < k <= x.shape[-1], f"npu_moe_gating_top_k_softmax: k={k}")
    best = torch.softmax(x.float(), dim=-1).topk(k, dim=-1)
    rows = torch.arange(best.indices.numel(), dtype=torch.int32).view(k, -1).t()
    return best.values.to(x.dtype), best.indices.to(torch.int32), rows.contiguous()


def npu_moe_gating_top_k(x: Tensor, k: int, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Choose experts, also by groups; the weights are left as they are scored."""
    bias, groups = options.get("bias"), options.get("group_count", 1)
    demand(bias is None or bias.dtype is x.dtype, "npu_moe_gating_top_k: bias has another dtype than x")
    demand(options.get("renorm", 0) == 0, "npu_moe_gating_top_k: renorm must be 0")
    demand(x.shape[-1] // groups > 2, "npu_moe_gating_top_k: a group needs more than two experts")
    scores = torch.sigmoid(x.float()) if options.get("norm_type", 0) else torch.softmax(x.float(), dim=-1)
    choice = scores if bias is None else scores + bias.float()
    if groups > 1:
        best = 2 if options.get("group_select_mode", 0) else 1
        choice = _of_best_groups(choice, groups, options.get("k_group", 1), best)
    ids = choice.topk(k, dim=-1).indices
    weights = scores.gather(-1, ids) * options.get("routed_scaling_factor", 1.0)
    return weights.to(x.dtype), ids.to(torch.int32), scores


def _of_best_groups(choice: Tensor, groups: int, chosen: int, best: int) -> Tensor:
    grouped = choice.view(len(choice), groups, -1)
    worth = grouped.topk(best, dim=-1).values.sum(-1)
    is_lost = torch.ones_like(worth, dtype=torch.bool)
    is_lost.scatter_(-1, worth.topk(chosen, dim=-1).indices, False)
    return grouped.masked_fill(is_lost.unsqueeze(-1), -torch.inf).flatten(1)


def npu_moe_init_routing_v2(
    x: Tensor, expert_idx: Tensor, **options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort the rows of all tokens by expert; places token by token, counts in int64."""
    count = options["expert_num"]
    demand(expert_idx.dtype is torch.int32, f"npu_moe_init_routing_v2: expert_idx is {expert_idx.dtype}")
    demand(bool(((expert_idx >= 0) & (expert_idx < count)).all()), "npu_moe_init_routing_v2: no such expert")
    demand(options.get("expert_tokens_num_type") == 1, "npu_moe_init_routing_v2: counts alone are emulated")
    demand(options.get("expert_tokens_num_flag") is True, "npu_moe_init_routing_v2: the flag must be set")
    demand(options.get("quant_mode", -1) == -1, "npu_moe_init_routing_v2: quantisation is not emulated")
    demand(
        list(options["active_expert_range"]) == [0, count], "npu_moe_init_routing_v2: all experts are active"
    )
    order = expert_idx.flatten().argsort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    counts = torch.bincount(expert_idx.flatten(), minlength=count)
    return x[order // expert_idx.shape[-1]], places.to(torch.int32), counts, torch.zeros(len(order))


def npu_grouped_matmul(x: list[Tensor], weight: list[Tensor], **options: Any) -> list[Tensor]:
    """Multiply the rows of each group with its matrix, (E, k, n)."""
    counts = options["group_list"]
    expected = {"split_item": 2, "group_type": 0, "group_list_type": 1}
    given = {name: options.get(name) for name in expected}
    demand(given == expected, f"npu_grouped_matmul: {given} is not emulated")
    demand(
        counts.dtype is torch.int64 and len(counts) > 1,
        "npu_grouped_matmul: group_list in int64, two at least",
    )
    (rows,), (matrices,) = x, weight
    demand(rows.dtype is matrices.dtype, "npu_grouped_matmul: x and weight have other dtypes")
    demand(int(counts.sum()) == len(rows), "npu_grouped_matmul: the groups are not all rows")
    parts = zip(torch.split(rows.float(), counts.tolist()), matrices.float(), strict=True)
    return [torch.cat([part @ matrix for part, matrix in parts]).to(rows.dtype)]


def npu_moe_finalize_routing(
    expanded_permuted_rows: Tensor,
    skip1: Tensor | None,
    skip2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    expanded_src_to_dst_row: Tensor,
    export_for_source_row: Tensor | None,
    drop_pad_mode: int | None = 0,
    k: int | None = 1,
) -> Tensor:
    """Add up the rows of each token by its weights.

    Places come slot by slot in mode 0, as documented, and token by token in mode 2, as SGLang passes them.
    """
    rows = expanded_permuted_rows
    demand(
        skip1 is None and skip2 is None and bias is None, "npu_moe_finalize_routing: skips are not emulated"
    )
    demand(
        drop_pad_mode in (0, 2), f"npu_moe_finalize_routing: drop_pad_mode {drop_pad_mode} is not emulated"
    )
    demand(expanded_src_to_dst_row.dtype is torch.int32, "npu_moe_finalize_routing: places in int32")
    assert scales is not None
    demand(scales.dtype is rows.dtype, f"npu_moe_finalize_routing: rows {rows.dtype}, scales {scales.dtype}")
    places = expanded_src_to_dst_row.long()
    by_token = places.view(scales.shape[1], -1).t() if drop_pad_mode == 0 else places.view(scales.shape)
    return (rows[by_token].float() * scales.float().unsqueeze(-1)).sum(1).to(rows.dtype)

"""SGLang's own Triton kernels for speculation, in Triton's interpreter, beside what takes their place.

``python interpreted_speculation.py`` prints one line ``RESULT {...}``: for each function in how many of its
calls it has returned or written something else than SGLang's.
"""

import copy
import json
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

import torch
from sglang.kernels.ops.memory.common import get_last_loc_triton
from sglang.kernels.ops.speculative import cache_locs, eagle, spec_tree
from sglang.srt.mem_cache import allocation

from sglang_fl.sglang_adapter.attention.backend import PagedAttention
from sglang_fl.sglang_adapter.speculation import slots, trees
from sglang_fl.sglang_adapter.speculation.install import standing_in

with standing_in("sgl_kernel.speculative", trees.reconstruct_indices_from_tree_mask):
    from sglang.kernels.ops.speculative import reconstruct_tree

CALLS = 20
Arguments = dict[str, Any]


def drawn(low: int, high: int, *shape: int) -> torch.Tensor:
    """Return numbers from ``low`` to ``high``, both among them."""
    return torch.randint(low, high + 1, shape)


def number(low: int, high: int) -> int:
    return int(drawn(low, high))


def requests() -> tuple[int, Arguments]:
    """Return how many there are, their rows in a table of slots, and the table."""
    count = number(1, 4)
    table = torch.randperm(400).view(5, 80).int()
    return count, {"req_pool_indices": torch.randperm(5)[:count], "req_to_token": table}


def tree_masks(batch: int, nodes: int) -> torch.Tensor:
    """Return which nodes are above each node of some trees, (B, N, N), bool."""
    masks = torch.eye(nodes, dtype=torch.bool).repeat(batch, 1, 1)
    for mask in masks:
        for node in range(1, nodes):
            mask[node] |= mask[number(0, node - 1)]
    return masks


def links(batch: int, nodes: int) -> Arguments:
    names = ("retrieve_index", "retrieve_next_token", "retrieve_next_sibling")
    return {name: torch.full((batch, nodes), -1) for name in names}


def of_masks() -> Arguments:
    batch, nodes = number(1, 3), number(1, 9)
    return {
        "tree_mask": tree_masks(batch, nodes).flatten(),
        "verified_seq_len": drawn(1, 20, batch),
        "positions": torch.zeros(batch * nodes, dtype=torch.long),
        **links(batch, nodes),
        "batch_size": batch,
        "draft_token_num": nodes,
    }


def of_choice() -> Arguments:
    """Choose among the tokens of a draft model by scores that shrink from parent to child, as SGLang does."""
    batch, topk, steps = number(1, 3), number(1, 3), number(1, 4)
    chosen, parents, count = [], [], topk + (steps - 1) * topk**2
    nodes = number(2, min(8, count + 1))
    for _ in range(batch):
        scores, of_request = torch.rand(topk), [torch.arange(-1, topk)]
        all_scores, best = [scores], scores
        for step in range(1, steps):
            expanded = (best.unsqueeze(1) * torch.rand(topk, topk)).flatten()
            all_scores.append(expanded)
            best, places = expanded.topk(topk)
            of_request.append(places + topk**2 * (step - 1) + topk)
        chosen.append(torch.cat(all_scores).topk(nodes - 1).indices.sort().values)
        parents.append(torch.cat(of_request[:-1]) if steps > 1 else torch.empty(0, dtype=torch.long))
    lengths = drawn(0, 9, batch)
    return {
        "parent_list": torch.stack(parents),
        "top_scores_index": torch.stack(chosen),
        "seq_lens": lengths,
        "tree_mask": torch.ones(int(nodes * (lengths + nodes).sum()), dtype=torch.bool),
        "positions": torch.zeros(batch * nodes, dtype=torch.long),
        **links(batch, nodes),
        "topk": topk,
        "spec_steps": steps,
        "num_verify_tokens": nodes,
        "tree_mask_mode": spec_tree.TreeMaskMode.FULL_MASK,
    }


def of_verification() -> Arguments:
    made = of_masks()
    trees.reconstruct_indices_from_tree_mask(**made)
    batch, nodes = made["batch_size"], made["draft_token_num"]
    return {
        "predicts": torch.zeros(batch * nodes, dtype=torch.int32),
        "accept_index": torch.full((batch, number(1, nodes)), -1, dtype=torch.int32),
        "accept_token_num": torch.zeros(batch, dtype=torch.int32),
        "candidates": drawn(0, 2, batch, nodes),
        **{name: made[name] for name in links(1, 1)},
        "target_predict": drawn(0, 2, batch, nodes),
    }


def of_pool() -> Arguments:
    count, table = requests()
    start, new = drawn(0, 30, count), drawn(0, 9, count)
    loc = torch.randperm(900)[: int(new.sum())]
    ends = {"start_offset": start, "end_offset": start + new}
    return {**table, **ends, "out_cache_loc": loc, "batch_size": count}


def of_extend() -> Arguments:
    count, table = requests()
    start, new = drawn(0, 30, count), number(1, 9)
    ends = {"start_offset": start, "end_offset": start + new}
    return {**table, **ends, "batch_size": count, "draft_token_num": new, "device": "cpu"}


def of_draft() -> Arguments:
    count, table = requests()
    topk, columns = number(1, 3), number(1, 5)
    return {
        **table,
        "seq_lens": drawn(0, 30, count),
        "out_cache_loc": torch.zeros(count * topk * columns, dtype=torch.long),
        "topk": topk,
        "num_cols": columns,
        "positions": torch.zeros(count * topk, dtype=torch.long),
        "mrope": torch.zeros(3, count * topk, dtype=torch.long),
    }


def of_front() -> Arguments:
    count, width = number(1, 4), number(1, 6)
    return {
        "num_front": drawn(0, width, count),
        "out_cache_loc": torch.randperm(count * width),
        "front_out_cache_loc": torch.zeros(count * width, dtype=torch.long),
    }


def of_accepted() -> Arguments:
    count, width = number(1, 4), number(1, 6)
    size = count * width
    return {
        "accept_index": drawn(-1, size - 1, count, width).int(),
        "out_cache_loc": torch.randperm(size),
        "accept_out_cache_loc": torch.zeros(size, dtype=torch.long),
        "size": size,
    }


def of_bonus() -> Arguments:
    count, width = number(1, 4), number(1, 6)
    return {
        "accept_tokens": drawn(0, 99, count, width).int(),
        "accept_lens": drawn(1, width, count).int(),
        "bonus_tokens": torch.zeros(count, dtype=torch.int32),
        "accept_stride": width,
        "batch_size": count,
    }


def of_last() -> Arguments:
    count, table = requests()
    return {
        "req_to_token": table["req_to_token"],
        "req_pool_indices_tensor": table["req_pool_indices"],
        "prefix_lens_tensor": drawn(0, 30, count),
    }


def of_steps() -> Arguments:
    count, table = requests()
    return {**table, "seq_lens": drawn(1, 30, count), "branches": number(1, 3), "steps": number(2, 5)}


def lists_by_triton(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    branches: int,
    steps: int,
) -> list[Any]:
    count = len(seq_lens)
    indices = torch.zeros(steps, 900, dtype=torch.long)
    bounds = torch.zeros(steps, count * branches + 1, dtype=torch.int32)
    cache_locs.generate_draft_decode_kv_indices[(steps, count, branches)](
        req_pool_indices,
        req_to_token,
        seq_lens,
        indices,
        bounds,
        seq_lens.repeat_interleave(branches),
        req_to_token.stride(0),
        indices.stride(0),
        bounds.stride(0),
        *(1 << (n - 1).bit_length() for n in (count, steps, count * branches)),
        1,
    )
    return [(bound.long(), row[: bound[-1]]) for bound, row in zip(bounds[:-1], indices[:-1], strict=True)]


def lists_by_ours(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    branches: int,
    steps: int,
) -> list[Any]:
    backend = object.__new__(PagedAttention)
    backend._layers_in_window_pool = frozenset()
    backend.req_to_token_pool = SimpleNamespace(req_to_token=req_to_token)
    batch = SimpleNamespace(
        req_pool_indices=req_pool_indices,
        seq_lens=seq_lens,
        batch_size=len(seq_lens),
        out_cache_loc=torch.zeros(len(seq_lens) * branches * steps),
    )
    made = []
    for step in range(steps - 1):
        backend.init_draft_step(batch, step, branches, steps)
        made.append(backend.forward_metadata.last(None, is_window_pool=False))
    return made


#: Draws arguments; SGLang's function; ours.
FUNCTIONS: dict[str, tuple[Callable[[], Arguments], Callable[..., Any], Callable[..., Any]]] = {
    "reconstruct_indices_from_tree_mask": (
        of_masks,
        reconstruct_tree.reconstruct_indices_from_tree_mask_triton,
        trees.reconstruct_indices_from_tree_mask,
    ),
    "build_tree_kernel_efficient_func": (
        of_choice,
        lambda **given: spec_tree.sgl_build_tree_kernel_triton(*given.values()),
        trees.build_tree_kernel_efficient_func,
    ),
    "verify_tree_greedy_func": (
        of_verification,
        lambda **given: (spec_tree.verify_tree_greedy_triton(**given), tuple(given.values())[:3])[1],
        trees.verify_tree_greedy_func,
    ),
    "assign_req_to_token_pool_func": (
        of_pool,
        allocation.assign_req_to_token_pool_func,
        slots.assign_req_to_token_pool_func,
    ),
    "assign_extend_cache_locs_func": (
        of_extend,
        lambda **given: launched(cache_locs.assign_extend_cache_locs_func, given),
        slots.assign_extend_cache_locs_func,
    ),
    "assign_draft_cache_locs_contiguous_func": (
        of_draft,
        cache_locs.assign_draft_cache_locs_contiguous_func,
        slots.assign_draft_cache_locs_contiguous_func,
    ),
    "fill_front_out_cache_loc_func": (
        of_front,
        cache_locs.fill_front_out_cache_loc_func,
        slots.fill_front_out_cache_loc_func,
    ),
    "fill_accept_out_cache_loc_func": (
        of_accepted,
        eagle.fill_accept_out_cache_loc_func,
        slots.fill_accept_out_cache_loc_func,
    ),
    "fill_bonus_tokens_func": (of_bonus, eagle.fill_bonus_tokens_func, slots.fill_bonus_tokens_func),
    "get_last_loc": (of_last, get_last_loc_triton, slots.get_last_loc),
    "DraftSteps": (of_steps, lists_by_triton, lists_by_ours),
}


def launched(function: Callable[..., Any], given: Arguments) -> Any:
    """Call a function of SGLang that launches its kernel on CUDA alone."""
    cache_locs._is_cuda = True
    try:
        return function(**given)
    finally:
        cache_locs._is_cuda = False


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)


def main() -> None:
    """Call both, and compare all that they return or write."""
    torch.manual_seed(0)
    differing = {}
    for name, (draw, own, ours) in FUNCTIONS.items():
        differing[name] = 0
        for _ in range(CALLS):
            given = draw()
            other = copy.deepcopy(given)
            one, two = (list(tensors([f(**g), g])) for f, g in ((own, given), (ours, other)))
            differing[name] += len(one) != len(two) or not all(map(torch.equal, one, two))
    print("RESULT " + json.dumps(differing))


if __name__ == "__main__":
    main()

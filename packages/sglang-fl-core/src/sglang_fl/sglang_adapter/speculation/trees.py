"""The trees of drafted tokens, and which of their nodes the target model accepts: in plain PyTorch.

Each request has a tree of N nodes. Its root, the node 0, is the last token that is known, and each other node
stands behind its parent. Functions have the names and signatures of those of SGLang that they replace, and
write into the tensors that these write.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError

__all__ = [
    "build_tree_kernel_efficient_func",
    "reconstruct_indices_from_tree_mask",
    "verify_tree_greedy_func",
    "walk",
]

#: The layout of a mask that has columns for the tokens before the tree, too: SGLang's ``TreeMaskMode``.
_FULL_MASK = 0


def reconstruct_indices_from_tree_mask(
    tree_mask: Tensor,
    verified_seq_len: Tensor,
    positions: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    batch_size: int,
    draft_token_num: int,
) -> None:
    """Find the links of trees and the positions of their nodes from the nodes that are above each.

    Parameters
    ----------
    tree_mask : Tensor, (B N N,), bool: above node i, or i itself, is j
    verified_seq_len : Tensor, (B,): the tokens before each root
    positions : Tensor, (B N,), written: of each node in its text
    retrieve_index : Tensor, (B, N), written: the row of a node in the batch
    retrieve_next_token : Tensor, (B, N), written: a node's first child, or -1
    retrieve_next_sibling : Tensor, (B, N), written: the next child of a node's parent, or -1
    batch_size, draft_token_num : B and N
    """
    is_above = tree_mask.view(batch_size, draft_token_num, draft_token_num).bool().tril(-1)
    positions.copy_((is_above.sum(-1) + verified_seq_len.unsqueeze(1)).flatten())
    place = torch.arange(draft_token_num, device=tree_mask.device)
    parents = torch.where(is_above, place, -1).amax(-1)
    _link(parents, retrieve_index, retrieve_next_token, retrieve_next_sibling)


def build_tree_kernel_efficient_func(
    parent_list: Tensor,
    top_scores_index: Tensor,
    seq_lens: Tensor,
    tree_mask: Tensor,
    positions: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    topk: int,
    spec_steps: int,
    num_verify_tokens: int,
    tree_mask_mode: int,
) -> None:
    """Make trees of the tokens that a draft model has chosen.

    Parameters
    ----------
    parent_list : Tensor, (B, P): for each token that the draft model went on from, its number
    top_scores_index : Tensor, (B, N - 1): the numbers of the chosen tokens, ascending. The draft model makes
        ``topk`` tokens from each that it goes on from, so that a number tells that one
    seq_lens : Tensor, (B,): the tokens before each root
    tree_mask : Tensor, (M,), bool, of which the elements among nodes are written; for each request N rows,
        with ``seq_lens`` columns before those of its nodes
    positions, retrieve_index, retrieve_next_token, retrieve_next_sibling : written, as of
        ``reconstruct_indices_from_tree_mask``
    topk, spec_steps, num_verify_tokens : of the draft model; the last one is N
    tree_mask_mode : which layout the mask has

    Raises
    ------
    UnsupportedError : a mask of another layout
    """
    if int(tree_mask_mode) != _FULL_MASK:
        raise UnsupportedError(f"trees of drafted tokens: a mask of the layout {tree_mask_mode!r}")
    parents = _parents_of_choice(parent_list, top_scores_index, topk)
    batch, nodes = parents.shape
    device = parents.device
    is_above = torch.eye(nodes, dtype=torch.bool, device=device).repeat(batch, 1, 1)
    each = torch.arange(batch, device=device)
    for node in range(1, nodes):  # a parent comes before its children
        is_above[:, node] |= is_above[each, parents[:, node]]
    positions.copy_((is_above.sum(-1) - 1 + seq_lens.unsqueeze(1)).flatten())
    widths = seq_lens + nodes
    begins = nodes * (widths.cumsum(0) - widths) + seq_lens
    place = torch.arange(nodes, device=device)
    elements = begins[:, None, None] + place[:, None] * widths[:, None, None] + place
    tree_mask[elements.flatten()] = is_above.flatten().to(tree_mask.dtype)
    _link(parents, retrieve_index, retrieve_next_token, retrieve_next_sibling)


def verify_tree_greedy_func(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    target_predict: Tensor,
    topk: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Accept the drafts that the target model finds most probable, one behind the other.

    Parameters
    ----------
    predicts : Tensor, (B N,), written where a node is accepted: the token behind it
    accept_index : Tensor, (B, D), written: the rows of the accepted nodes in the batch, the root first; what
        follows stays as it is
    accept_token_num : Tensor, (B,), written: how many drafts are accepted, the root not counted
    candidates : Tensor, (B, N): the tokens of the nodes
    retrieve_index, retrieve_next_token, retrieve_next_sibling : Tensors, (B, N): the links of the trees
    target_predict : Tensor, (B, N): the most probable token behind each node
    topk : not looked at
    """
    tokens, wanted, rows = candidates.tolist(), target_predict.tolist(), retrieve_index.tolist()
    links = zip(retrieve_next_token.tolist(), retrieve_next_sibling.tolist(), strict=True)
    for number, (children, siblings) in enumerate(links):

        def is_wanted(node: int, child: int, number: int = number) -> bool:
            return bool(tokens[number][child] == wanted[number][node])

        path = walk(children, siblings, accept_index.shape[1], is_wanted)
        found = [rows[number][node] for node in path]
        predicts[found] = target_predict[number, path].to(predicts.dtype)
        accept_index[number, : len(found)] = torch.tensor(found, dtype=accept_index.dtype)
        accept_token_num[number] = len(found) - 1
    return predicts, accept_index, accept_token_num


def walk(
    children: list[int], siblings: list[int], most: int, accepts: Callable[[int, int], Any]
) -> list[int]:
    """Return the nodes of a tree from its root as far as they are accepted.

    Parameters
    ----------
    children : of each node its first child, or -1
    siblings : of each node the next child of its parent, or -1
    most : nodes at most, the root among them
    accepts : told a node and one of its children, in order: whether that one follows
    """
    path = [0]
    while len(path) < most:
        child = children[path[-1]]
        while child != -1 and not accepts(path[-1], child):
            child = siblings[child]
        if child == -1:
            break
        path.append(child)
    return path


def _parents_of_choice(parent_list: Tensor, chosen: Tensor, topk: int) -> Tensor:
    """Return the parent of each node, (B, N); -1 for the root."""
    groups = chosen // topk
    is_first = groups == 0  # the children of the root
    numbers = parent_list.gather(1, groups) if parent_list.shape[1] else groups
    is_parent = chosen.unsqueeze(1) == numbers.unsqueeze(2)
    parents = torch.where(is_first, 0, 1 + _first(is_parent))
    return torch.nn.functional.pad(parents, (1, 0), value=-1)


def _link(parents: Tensor, index: Tensor, first_child: Tensor, next_sibling: Tensor) -> None:
    """Write the row of each node, its first child, and the next child of its parent."""
    place = torch.arange(parents.shape[1], device=parents.device)
    index.copy_(torch.arange(parents.numel(), device=parents.device).view(parents.shape))
    first_child.copy_(_first(parents.unsqueeze(1) == place.unsqueeze(1)))
    is_later = place > place.unsqueeze(1)
    has_same_parent = (parents.unsqueeze(1) == parents.unsqueeze(2)) & (parents >= 0).unsqueeze(2)
    next_sibling.copy_(_first(has_same_parent & is_later))


def _first(is_any: Tensor) -> Tensor:
    """Return the first place in the last axis that is set, or -1."""
    count = is_any.shape[-1]
    place = torch.arange(count, device=is_any.device)
    first = torch.where(is_any, place, count).amin(-1) if count else is_any.sum(-1)
    return torch.where(first == count, -1, first)

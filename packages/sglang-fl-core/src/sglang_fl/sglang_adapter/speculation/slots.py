"""The slots of drafted tokens in SGLang's pools, in plain PyTorch.

Functions have the names and signatures of those of SGLang that they replace, and write into the tensors that
these write.
"""

import torch
from torch import Tensor

__all__ = [
    "assign_draft_cache_locs_contiguous_func",
    "assign_extend_cache_locs_func",
    "assign_req_to_token_pool_func",
    "fill_accept_out_cache_loc_func",
    "fill_bonus_tokens_func",
    "fill_front_out_cache_loc_func",
    "get_last_loc",
]


def get_last_loc(req_to_token: Tensor, req_pool_indices_tensor: Tensor, prefix_lens_tensor: Tensor) -> Tensor:
    """Return the slot of the last token of each request, (B,); -1 where it has none.

    Parameters
    ----------
    req_to_token, req_pool_indices_tensor : as of ``assign_req_to_token_pool_func``
    prefix_lens_tensor : Tensor, (B,): how many tokens each has
    """
    last = req_to_token[req_pool_indices_tensor.long(), prefix_lens_tensor.long() - 1]
    return torch.where(prefix_lens_tensor > 0, last.to(prefix_lens_tensor.dtype), -1)


def assign_req_to_token_pool_func(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    batch_size: int,
) -> None:
    """Note the slots of further tokens of each request.

    Parameters
    ----------
    req_pool_indices : Tensor, (B,): the row of each request
    req_to_token : Tensor, (rows, most tokens), written: the slot of each token of each request
    start_offset, end_offset : Tensors, (B,): the first of its tokens, and the one behind the last
    out_cache_loc : Tensor, (T,): the slots, those of one request after those of the other
    batch_size : B
    """
    rows, places = _places(req_pool_indices, start_offset, end_offset)
    req_to_token[rows, places] = out_cache_loc[: len(rows)].to(req_to_token.dtype)


def assign_extend_cache_locs_func(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    batch_size: int,
    draft_token_num: int,
    device: object,
) -> Tensor:
    """Return the slots that ``assign_req_to_token_pool_func`` has noted, (T,), int64."""
    rows, places = _places(req_pool_indices, start_offset, end_offset)
    return req_to_token[rows, places].long()


def assign_draft_cache_locs_contiguous_func(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    seq_lens: Tensor,
    out_cache_loc: Tensor,
    topk: int,
    num_cols: int,
    positions: Tensor | None = None,
    mrope: Tensor | None = None,
) -> None:
    """Write the slots behind the last token of each request.

    Parameters
    ----------
    req_pool_indices, req_to_token : as of ``assign_req_to_token_pool_func``
    seq_lens : Tensor, (B,): how many tokens each has
    out_cache_loc : Tensor, (B topk num_cols,), written
    topk, num_cols : of each request so many times so many slots
    positions : Tensor, (B topk,), written where it is given: how many tokens the request has
    mrope : Tensor, (3, B topk), likewise
    """
    rows, places = _places(req_pool_indices, seq_lens, seq_lens + topk * num_cols)
    out_cache_loc.copy_(req_to_token[rows, places])
    for target in (positions, mrope):
        if target is not None:
            target.copy_(seq_lens.repeat_interleave(topk))


def fill_front_out_cache_loc_func(
    num_front: Tensor, out_cache_loc: Tensor, front_out_cache_loc: Tensor
) -> None:
    """Write the first slots of each request, one request after the other.

    Parameters
    ----------
    num_front : Tensor, (B,): how many of each
    out_cache_loc : Tensor, (B N,): N slots of each
    front_out_cache_loc : Tensor, (at least so many,), written from its beginning
    """
    of_each = out_cache_loc.view(len(num_front), -1)
    is_front = torch.arange(of_each.shape[1], device=of_each.device) < num_front.unsqueeze(1)
    _write(front_out_cache_loc, of_each[is_front])


def fill_accept_out_cache_loc_func(
    accept_index: Tensor, out_cache_loc: Tensor, accept_out_cache_loc: Tensor, size: int
) -> None:
    """Write the slots of accepted tokens one after the other.

    Parameters
    ----------
    accept_index : Tensor, (B, D): their places in ``out_cache_loc``; -1: none
    out_cache_loc : Tensor, (T,): slots
    accept_out_cache_loc : Tensor, (B D,), written from its beginning
    size : B D
    """
    chosen = accept_index.flatten()
    _write(accept_out_cache_loc, out_cache_loc[chosen[chosen >= 0].long()])


def fill_bonus_tokens_func(
    accept_tokens: Tensor, accept_lens: Tensor, bonus_tokens: Tensor, accept_stride: int, batch_size: int
) -> None:
    """Write the last accepted token of each request, which the target model has added to the drafts.

    Parameters
    ----------
    accept_tokens : Tensor, (B, ``accept_stride``) or flat: the accepted tokens
    accept_lens : Tensor, (B,): how many each has
    bonus_tokens : Tensor, (B,), written
    accept_stride, batch_size : B is the last one
    """
    last = accept_lens.long().unsqueeze(1) - 1
    bonus_tokens.copy_(accept_tokens.view(batch_size, accept_stride).gather(1, last).squeeze(1))


def _places(rows: Tensor, first: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and column of the tokens from ``first`` to before ``end`` of each request."""
    counts = (end - first).long()
    owner = torch.repeat_interleave(counts)
    within = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
    return rows[owner].long(), first[owner].long() + within


def _write(target: Tensor, values: Tensor) -> None:
    target[: len(values)] = values.to(target.dtype)

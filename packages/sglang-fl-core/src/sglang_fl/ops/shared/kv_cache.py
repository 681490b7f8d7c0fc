"""What the ops share that also write keys and values into the KV cache: checks, the write, sample inputs."""

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Outputs
from sglang_fl.ops.shared.overlap import shares_memory
from sglang_fl.ops.shared.scales import EIGHT_BIT

__all__ = [
    "KV_CACHE",
    "check_kv_cache",
    "kv_cache_sizes",
    "sample_kv_cache",
    "without_shared_slots",
    "write_kv_cache",
]

#: The options of such an op, all of which a call gives, or none.
KV_CACHE = ("value", "k_buffer", "v_buffer", "cache_loc")


def check_kv_cache(
    op: str,
    tokens: int,
    key: Tensor,
    value: Tensor | None,
    k_buffer: Tensor | None,
    v_buffer: Tensor | None,
    cache_loc: Tensor | None,
) -> bool:
    """Return whether a call writes the KV cache.

    Parameters
    ----------
    op : for error messages
    tokens : T
    key : its elements are counted; that it is T rows of heads is checked where it is rotated
    value, k_buffer, v_buffer, cache_loc : see ``rotary_embedding``

    Raises
    ------
    ContractError : only some of the options are given, they are not a row or a slot for each token, they do
        not fit each other, or slots share memory
    """
    if value is k_buffer is v_buffer is cache_loc is None:
        return False
    if value is None or k_buffer is None or v_buffer is None or cache_loc is None:
        given = zip(KV_CACHE, (value, k_buffer, v_buffer, cache_loc), strict=True)
        missing = [name for name, tensor in given if tensor is None]
        raise ContractError(f"{op}: to write the KV cache it needs {' and '.join(missing)} too")
    if cache_loc.shape != (tokens,) or cache_loc.dtype not in (torch.int32, torch.int64):
        raise ContractError(
            f"{op}: cache_loc {tuple(cache_loc.shape)} {cache_loc.dtype} is not a slot in int32 or int64 for "
            f"each of {tokens} tokens"
        )
    if value.dim() < 2 or value.shape[0] != tokens:
        raise ContractError(f"{op}: value {tuple(value.shape)} is not a row for each of {tokens} tokens")
    if len(k_buffer) != len(v_buffer):
        raise ContractError(f"{op}: k_buffer has {len(k_buffer)} slots, and v_buffer has {len(v_buffer)}")
    for name, rows, pool in (("k_buffer", key, k_buffer), ("v_buffer", value, v_buffer)):
        width = pool.shape[1:].numel()
        if rows.numel() != tokens * width or rows.dtype is not pool.dtype:
            raise ContractError(
                f"{op}: {tokens} slots of {name} {tuple(pool.shape)} {pool.dtype} do not hold "
                f"{tuple(rows.shape)} {rows.dtype}"
            )
        if shares_memory(pool):
            raise ContractError(f"{op}: slots of {name} share memory")
    return True


def write_kv_cache(key: Tensor, value: Tensor, k_buffer: Tensor, v_buffer: Tensor, cache_loc: Tensor) -> None:
    """Write a row of keys and one of values into the slot of each token.

    Parameters
    ----------
    key : as it is returned: rotated, and rounded to its dtype
    value, k_buffer, v_buffer, cache_loc : see ``rotary_embedding``
    """
    tokens = len(cache_loc)
    if not tokens:
        return
    # Padding writes what the first token does, if there is any: so a graph can hold the call.
    is_token = cache_loc >= 0
    places = torch.arange(tokens, device=cache_loc.device)
    written = torch.where(is_token, places, is_token.to(torch.int8).argmax())
    slots = cache_loc[written].clamp_min(0).long()
    for rows, pool in ((key, k_buffer), (value, v_buffer)):
        new = rows.reshape(tokens, *pool.shape[1:])[written]
        pool[slots] = torch.where(is_token.any(), new, pool[slots])


def kv_cache_sizes(
    truth: tuple[Tensor, ...], key_size: Tensor, cache_loc: Tensor | None
) -> tuple[Tensor, ...]:
    """Return the size of the terms of each element of the two pools; none where they are not given.

    Parameters
    ----------
    truth : all results of the call: query, key, and the pools
    key_size : of the key's elements
    cache_loc : see ``rotary_embedding``
    """
    if cache_loc is None:
        return ()
    keys, values = truth[2].abs(), truth[3].abs()
    is_token = cache_loc >= 0
    keys[cache_loc[is_token].long()] = key_size.reshape(len(cache_loc), *keys.shape[1:])[is_token]
    return keys, values


def without_shared_slots(outputs: Outputs, arguments: Arguments) -> tuple[Tensor, ...]:
    """Set to zero what is in a slot that several tokens name, where it is left open.

    Parameters
    ----------
    outputs : all results of a call; the pools come last, if it has any
    arguments : of the call
    """
    if arguments.get("cache_loc") is None:
        return tuple(outputs)
    *others, keys, values = outputs
    slots, counts = arguments["cache_loc"].unique(return_counts=True)
    shared = slots[(counts > 1) & (slots >= 0)].long()
    if not len(shared):
        return tuple(outputs)
    pools = (keys.clone(), values.clone())
    for pool in pools:
        pool.view(torch.uint8 if pool.dtype in EIGHT_BIT else pool.dtype)[shared] = 0
    return (*others, *pools)


def sample_kv_cache(
    key: Tensor,
    value: Tensor,
    generator: torch.Generator,
    *,
    heads: int | None = None,
    loc_dtype: torch.dtype = torch.int64,
    padding: int = 0,
    is_poisoned: bool = False,
    absent: int = 0,
    shared: int = 0,
) -> Arguments:
    """Return the options with which a call writes its keys and values into a cache that has contents.

    Parameters
    ----------
    key, value : (T, n), (T, m): rows of tokens
    generator : draws contents and slots
    heads : the pools have an axis of so many heads; None: they have two axes
    loc_dtype : of the slots
    padding : elements between the slots of the pools
    is_poisoned : what lies in the slots of other tokens is no number
    absent : how many tokens at the end are padding
    shared : how many before them have one slot, as SGLang pads a batch
    """
    tokens = len(key)
    slots = tokens + 4
    loc = torch.randperm(slots, generator=generator)[:tokens].to(loc_dtype)

    def pool(width: int) -> Tensor:
        wide = torch.randn(slots, width + padding, generator=generator).to(key.dtype)[:, :width]
        if is_poisoned:
            wide[[slot for slot in range(slots) if slot not in loc.tolist()]] = torch.nan
        return wide if heads is None else wide.view(slots, heads, width // heads)

    k_buffer, v_buffer = pool(key.shape[1]), pool(value.shape[1])
    loc[tokens - absent :] = -1
    loc[tokens - absent - shared : tokens - absent] = slots - 1
    return dict(zip(KV_CACHE, (value, k_buffer, v_buffer, loc), strict=True))

"""What the tests of the ops share that also write keys and values into the KV cache."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sglang_fl.ops import KV_CACHE, Kernel, Outputs
from tests.ops.shared.drawing import Source
from tests.ops.subject import Array, like

__all__ = ["cache_write", "draw_cache_write", "wrong_writes"]


def cache_write(
    key: Array, value: Array | None, k_buffer: Array | None, v_buffer: Array | None, cache_loc: Array | None
) -> tuple[Array, ...]:
    """Return the pools after a call, by the formula; none where the call writes none."""
    if cache_loc is None:
        return ()
    pools = k_buffer.copy(), v_buffer.copy()
    for token, slot in enumerate(cache_loc):
        if slot < 0:
            continue
        for pool, rows in zip(pools, (key, value), strict=True):
            pool[slot] = rows[token].reshape(pool.shape[1:])
    return pools


def draw_cache_write(source: Source, key: Tensor) -> dict[str, Any]:
    """Draw what writes these keys into a cache, and values of any width; or nothing."""
    tokens = len(key)
    if source.one_of(False, True):
        return {}
    width = source.number(1, 9)
    slots = tokens + source.number(1, 4)
    loc = source.uniform(slots).argsort()[:tokens].to(source.one_of(torch.int32, torch.int64))
    loc[tokens - source.number(0, min(tokens, source.one_of(0, 0, 2))) :] = -1
    keys = source.rows(slots, key.shape[1:].numel())
    if key.dim() == 3 and source.one_of(False, True):
        keys = keys.unflatten(1, key.shape[1:])
    given = (source.strided(tokens, width), keys, source.rows(slots, width), loc)
    return dict(zip(KV_CACHE, given, strict=True))


def _with_slots(given: dict[str, Any], change: Callable[[Tensor, int], Tensor]) -> dict[str, Any]:
    """Return other slots for a call that writes the KV cache: of the slots, and how many the pool has."""
    if "cache_loc" not in given:
        return {}
    return {"cache_loc": change(given["cache_loc"], len(given["k_buffer"]))}


def wrong_writes(reference: Kernel) -> tuple[Kernel, ...]:
    """Return kernels that write the KV cache wrongly, each in one way."""

    def wrong(name: str) -> Callable[[Callable[..., Outputs]], Kernel]:
        def mark(kernel: Callable[..., Outputs]) -> Kernel:
            kernel.__name__ = name
            return like(reference)(kernel)

        return mark

    @wrong("cache_not_written")
    def cache_not_written(**given: Any) -> Outputs:
        pools = {name: given[name].clone() for name in ("k_buffer", "v_buffer") if name in given}
        return reference(**given | pools)

    @wrong("keys_cached_as_they_were")
    def keys_cached_as_they_were(**given: Any) -> Outputs:
        key = given["key"].clone()
        results = reference(**given)
        if "k_buffer" in given:
            is_token = given["cache_loc"] >= 0
            rows = key.reshape(len(key), *given["k_buffer"].shape[1:])
            given["k_buffer"][given["cache_loc"][is_token].long()] = rows[is_token]
        return results

    @wrong("next_slot_written")
    def next_slot_written(**given: Any) -> Outputs:
        return reference(**given | _with_slots(given, lambda loc, slots: (loc + 1) % slots))

    @wrong("slots_taken_in_order")
    def slots_taken_in_order(**given: Any) -> Outputs:
        return reference(**given | _with_slots(given, lambda loc, slots: loc.sort().values))

    @wrong("padding_in_the_last_slot")
    def padding_in_the_last_slot(**given: Any) -> Outputs:
        in_last = _with_slots(given, lambda loc, slots: torch.where(loc < 0, slots - 1, loc))
        return reference(**given | in_last)

    return (
        cache_not_written,
        keys_cached_as_they_were,
        next_slot_written,
        slots_taken_in_order,
        padding_in_the_last_slot,
    )

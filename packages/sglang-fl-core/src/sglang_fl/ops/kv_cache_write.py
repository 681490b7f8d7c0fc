"""The op ``kv_cache_write``: the write of new keys and values into their slots of the KV cache."""

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Bound, Case, Op, compute_dtype
from sglang_fl.ops.shared.attention import sample_pools
from sglang_fl.ops.shared.kv_cache import without_shared_slots
from sglang_fl.ops.shared.overlap import shares_memory
from sglang_fl.ops.shared.scales import EIGHT_BIT, check_scales

__all__ = ["OP", "check_write", "kv_cache_write"]


def kv_cache_write(
    k: Tensor,
    v: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    cache_loc: Tensor,
    *,
    k_scale: float | None = None,
    v_scale: float | None = None,
) -> tuple[()]:
    """Write the key and the value of each new token into the token's slot of the pools.

    ``k_buffer[cache_loc[t]] = k[t] / k_scale``, and the same of the values.

    Source: SGLang ``srt/mem_cache/memory_pool.py``, ``MHATokenToKVPool.set_kv_buffer``. That divides in the
    dtype of the keys, in their own place; here the quotient is rounded once, and ``k`` stays as it is.

    Parameters
    ----------
    k : Tensor, (T, KH, D), float16, bfloat16 or float32, rows at any stride; not written
    v : Tensor, (T, KH, DV), dtype of ``k``, rows at any stride; not written
    k_buffer : Tensor, (S, KH, D), a floating dtype, in 8 bit float8_e4m3fn or float8_e5m2, slots dense and at
        any stride: row ``cache_loc[t]`` is **updated in place**, and no other
    v_buffer : Tensor, (S, KH, DV), likewise
    cache_loc : Tensor, (T,), int32 or int64: the slot of each token; one below 0 says that the token is
        padding, of which nothing is written. What is in a slot that several tokens name is left open
    k_scale, v_scale : what keys and values are divided by, both or neither; pools in 8 bit need them. What a
        pool in 8 bit gets for a quotient beyond its largest number is left open: here that number

    Returns
    -------
    nothing : an empty tuple. Where a pool has the dtype of the keys, and no scale is given, it has their very
        bits; else quotients formed in float32 and rounded once

    Raises
    ------
    ContractError : shapes that do not fit; slots that share memory; a pool in 8 bit without scales, or one
        scale alone
    """
    check_write(k, v, k_buffer, v_buffer, cache_loc, k_scale, v_scale)
    is_token = cache_loc >= 0
    slots = cache_loc[is_token].long()
    for rows, pool, scale in ((k, k_buffer, k_scale), (v, v_buffer, v_scale)):
        stored = _stored(rows[is_token], pool, scale)
        # Not every device copies by indices in 8 bit.
        bits = torch.uint8 if pool.dtype in EIGHT_BIT else pool.dtype
        pool.view(bits)[slots] = stored.view(bits)
    return ()


def _stored(rows: Tensor, pool: Tensor, scale: float | None) -> Tensor:
    """Return rows as they lie in a pool."""
    if scale is not None:
        rows = rows.to(compute_dtype(rows, pool)) / scale
    if pool.dtype in EIGHT_BIT:
        largest = torch.finfo(pool.dtype).max
        rows = rows.clamp(-largest, largest)
    return rows.to(pool.dtype)


def check_write(
    k: Tensor,
    v: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    cache_loc: Tensor,
    k_scale: float | None = None,
    v_scale: float | None = None,
) -> None:
    """Raise ``ContractError`` where the arguments do not fit."""
    if cache_loc.dim() != 1 or cache_loc.dtype not in (torch.int32, torch.int64):
        raise ContractError(
            f"kv_cache_write: cache_loc {tuple(cache_loc.shape)} {cache_loc.dtype} is not a slot in int32 or "
            "int64 for each token"
        )
    for name, rows, pool in (("k", k, k_buffer), ("v", v, v_buffer)):
        if rows.dim() != 3 or pool.dim() != 3 or rows.shape != (len(cache_loc), *pool.shape[1:]):
            raise ContractError(
                f"kv_cache_write: {len(cache_loc)} slots of {name}_buffer {tuple(pool.shape)} do not hold "
                f"{name} {tuple(rows.shape)}"
            )
        if shares_memory(pool):
            raise ContractError(f"kv_cache_write: slots of {name}_buffer share memory")
    if len(k_buffer) != len(v_buffer):
        raise ContractError(
            f"kv_cache_write: k_buffer has {len(k_buffer)} slots, and v_buffer has {len(v_buffer)}"
        )
    check_scales("kv_cache_write", k_buffer, v_buffer, k_scale, v_scale)


def _like(
    k: Tensor,
    v: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    cache_loc: Tensor,
    *,
    k_scale: float | None = None,
    v_scale: float | None = None,
) -> tuple[()]:
    check_write(k, v, k_buffer, v_buffer, cache_loc, k_scale, v_scale)
    return ()


def _case(
    name: str,
    tokens: int,
    heads: int = 2,
    elements: tuple[int, int] = (64, 64),
    *,
    layout: str = "dense",
    is_packed: bool = False,
    loc_dtype: torch.dtype = torch.int64,
    padding: int = 0,
    shared: int = 0,
    is_poisoned: bool = False,
    pool_dtype: torch.dtype | None = None,
    scales: tuple[float, float] | None = None,
) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        keys, values = elements
        rows = torch.randn(tokens, heads * (keys + values), generator=generator).to(dtype)
        k = rows[:, : heads * keys].view(tokens, heads, keys)
        v = rows[:, heads * keys :].view(tokens, heads, values)
        slots = tokens + 4
        pools = sample_pools(slots, (heads, keys, values), pool_dtype or dtype, generator, layout)
        loc = torch.randperm(slots, generator=generator)[:tokens].to(loc_dtype)
        if is_poisoned:
            for pool in pools:
                pool[[slot for slot in range(slots) if slot not in loc.tolist()]] = torch.nan
        # As a graph pads a batch: at its end; and somewhere in it.
        loc[tokens - padding :] = -1
        loc[: padding // 2] = -1
        loc[tokens - shared :] = loc[tokens - 1 :].clone()  # as SGLang pads a batch
        made: Arguments = {
            "k": k if is_packed else k.contiguous(),
            "v": v if is_packed else v.contiguous(),
            "k_buffer": pools[0],
            "v_buffer": pools[1],
            "cache_loc": loc,
        }
        if scales is not None:
            made["k_scale"], made["v_scale"] = scales
        return made

    return Case(name, make)


OP = Op(
    kv_cache_write,
    cases=(
        _case("one-token", 1),
        _case("several-tokens", 37),
        _case("no-tokens", 0),
        _case("one-head", 5, 1, (128, 128)),
        _case("odd-heads", 9, 3, (80, 80)),
        _case("wide-values", 9, elements=(32, 96)),
        _case("packed", 9, is_packed=True),
        _case("pools-strided", 9, layout="strided", is_packed=True),
        _case("int32-slots", 9, loc_dtype=torch.int32),
        _case("padding", 9, padding=3),
        _case("slot-of-several", 9, shared=4),
        _case("other-slots-not-finite", 9, is_poisoned=True),
        _case("pools-in-float16", 9, pool_dtype=torch.float16),
        _case("scales", 9, scales=(0.37, 1.9)),
        _case("e4m3", 37, pool_dtype=torch.float8_e4m3fn, scales=(0.37, 1.9)),
        _case("e5m2", 9, pool_dtype=torch.float8_e5m2, scales=(1.6, 0.45), layout="strided", is_packed=True),
        _case("e4m3-padding", 9, pool_dtype=torch.float8_e4m3fn, scales=(1.0, 1.0), padding=4),
    ),
    # A quotient that is rounded once, or on the way to few bits a second time to many: as SGLang's own is. In
    # float32 a kernel may multiply by the inverse.
    bound=Bound(half=0.55, single=2),
    rows={"k": 0, "v": 0, "cache_loc": 0},
    writes_rows={"k_buffer": "cache_loc", "v_buffer": "cache_loc"},
    updates=("k_buffer", "v_buffer"),
    comparable=without_shared_slots,
    like=_like,
)

"""All that the tests know of the op ``kv_cache_write``."""

from typing import Any

import torch

from sglang_fl.ops import Outputs
from sglang_fl.ops.kv_cache_write import kv_cache_write
from sglang_fl.ops.shared.scales import EIGHT_BIT
from tests.ops.shared.attention import wrong_scales
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.subject import Array, Subject, like


def formula(
    k: Array,
    v: Array,
    k_buffer: Array,
    v_buffer: Array,
    cache_loc: Array,
    k_scale: float | None = None,
    v_scale: float | None = None,
) -> tuple[Array, ...]:
    pools = k_buffer.copy(), v_buffer.copy()
    for rows, pool, scale in zip((k, v), pools, (k_scale, v_scale), strict=True):
        for token, slot in enumerate(cache_loc):
            if slot >= 0:
                pool[slot] = rows[token] / (scale or 1.0)
    return pools


def draw(source: Source) -> Drawn:
    tokens, heads = source.number(0, 5), source.number(1, 3)
    keys, values = source.number(1, 9), source.number(1, 9)
    slots = tokens + source.number(1, 4)
    loc = source.uniform(slots).argsort()[:tokens].to(source.one_of(torch.int32, torch.int64))
    loc[: source.number(0, tokens)] *= source.one_of(1, 1, -1)
    loc[loc == 0] = source.one_of(0, -1)
    dtype = source.one_of(source.dtype, source.dtype, torch.float16, *EIGHT_BIT)
    scales = {name: source.one_of(0.3, 1.0, 1.7) for name in ("k_scale", "v_scale")}
    is_scaled = dtype in EIGHT_BIT or source.one_of(False, False, True)
    return Drawn(
        {
            "k": source.strided(tokens, heads, keys),
            "v": source.strided(tokens, heads, values),
            "k_buffer": source.rows(slots, heads * keys, dtype=dtype).unflatten(1, (heads, keys)),
            "v_buffer": source.rows(slots, heads * values, dtype=dtype).unflatten(1, (heads, values)),
            "cache_loc": loc,
            **(scales if is_scaled else {}),
        }
    )


@like(kv_cache_write)
def nothing_written(**given: Any) -> Outputs:
    return ()


@like(kv_cache_write)
def next_slot_written(**given: Any) -> Outputs:
    loc = given["cache_loc"]
    return kv_cache_write(
        **given | {"cache_loc": torch.where(loc < 0, loc, (loc + 1) % len(given["k_buffer"]))}
    )


@like(kv_cache_write)
def slots_taken_in_order(**given: Any) -> Outputs:
    return kv_cache_write(**given | {"cache_loc": given["cache_loc"].sort().values})


@like(kv_cache_write)
def last_row_forgotten(**given: Any) -> Outputs:
    """As where the rows are cut into blocks, and the last one is not full."""
    return kv_cache_write(**given | {name: given[name][:-1] for name in ("k", "v", "cache_loc")})


@like(kv_cache_write)
def values_forgotten(**given: Any) -> Outputs:
    return kv_cache_write(**given | {"v_buffer": given["v_buffer"].clone()})


@like(kv_cache_write)
def padding_written_behind_the_last_slot(**given: Any) -> Outputs:
    """A slot below 0 is counted from the end, as PyTorch does."""
    return kv_cache_write(**given | {"cache_loc": given["cache_loc"] % len(given["k_buffer"])})


@like(kv_cache_write)
def padding_written_into_the_first_slot(**given: Any) -> Outputs:
    return kv_cache_write(**given | {"cache_loc": given["cache_loc"].clamp_min(0)})


@like(kv_cache_write)
def divided_in_the_callers_keys(**given: Any) -> Outputs:
    if "k_scale" in given:
        given["k"].div_(given["k_scale"])
        given["k_scale"] = 1.0
    return kv_cache_write(**given)


@like(kv_cache_write)
def rounded_towards_zero(**given: Any) -> Outputs:
    """Bits that do not fit are cut off."""
    for name in ("k", "v"):
        scale = given.pop(f"{name}_scale", None)
        pool = given[f"{name}_buffer"]
        if scale is None or pool.dtype not in EIGHT_BIT:
            scale = scale or 1.0
            given[name] = (given[name].float() / scale).to(given[name].dtype)
            continue
        exact = given[name].float() / scale
        rounded = exact.to(pool.dtype).float()
        smaller = exact * (1 - torch.finfo(pool.dtype).eps / 2)
        given[name] = torch.where(rounded.abs() > exact.abs(), smaller.to(pool.dtype).float(), rounded)
    is_8_bit = given["k_buffer"].dtype in EIGHT_BIT
    return kv_cache_write(**given, **({"k_scale": 1.0, "v_scale": 1.0} if is_8_bit else {}))


WRONG_SCALES = wrong_scales(kv_cache_write)
keys_scale_forgotten, values_scale_forgotten, scales_exchanged, inverse_of_the_scales = WRONG_SCALES

SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native="a method of SGLang's pools; tests/engine/test_attention.py compares with it",
    wrong={
        "cases": (
            nothing_written,
            next_slot_written,
            slots_taken_in_order,
            last_row_forgotten,
            values_forgotten,
            padding_written_behind_the_last_slot,
            padding_written_into_the_first_slot,
            divided_in_the_callers_keys,
            rounded_towards_zero,
            *WRONG_SCALES,
        ),
    },
)

"""All that the tests know of the op ``decode_attention``."""

import itertools
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from sglang_fl.ops import Outputs
from sglang_fl.ops.decode_attention import decode_attention
from tests.ops.shared.attention import (
    attend,
    drawn_lists,
    drawn_pools,
    drawn_sizes,
    has_more_than_scores,
    kernel_of,
    stored,
    sums_in_a_kept_buffer,
    temperatures,
    wrong_integers,
    wrong_scales,
    wrong_temperatures,
)
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.subject import Arguments, Array, Subject, like


def formula(
    q: Array,
    k_buffer: Array,
    v_buffer: Array,
    kv_indptr: Array,
    kv_indices: Array,
    scale: float,
    logit_cap: float = 0.0,
    temperature_len: int = 0,
    sinks: Array | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    return_lse: bool = False,
    out: Array | None = None,
    late: int = 0,
    least: float = 1.0,
    is_capped_last: bool = False,
) -> tuple[Array, ...]:
    """Compute it, whatever ``out`` is; with one of the last three wrongly.

    ``late`` : so many keys too many count as before a query's own
    ``least`` : as of ``temperatures``
    ``is_capped_last`` : as of ``attend``
    """
    out, lse = np.zeros((*q.shape[:2], v_buffer.shape[2])), np.zeros(q.shape[:2])
    for number in range(len(q)):
        slots = kv_indices[kv_indptr[number] : kv_indptr[number + 1]]
        is_seen = np.ones((1, len(slots)), dtype=bool)
        keys, values = stored(k_buffer[slots], k_scale), stored(v_buffer[slots], v_scale)
        heat = temperatures(np.array([max(0, len(slots) - 1 + late)]), temperature_len, least)
        given = (q[number, None], keys, values, is_seen, scale, logit_cap, sinks, heat, is_capped_last)
        (out[number],), (lse[number],) = attend(*given)
    return (out, lse) if return_lse else (out,)


def draw(source: Source) -> Drawn:
    query_heads, *sizes = drawn_sizes(source)
    sequences = source.number(0, 4)
    bounds, indices, slots = drawn_lists(source, sequences, source.one_of(4, 300))
    pools = drawn_pools(source, slots, tuple(sizes))
    return Drawn(
        {
            "q": source.rows(sequences, query_heads, sizes[1]),
            **pools,
            "kv_indptr": bounds,
            "kv_indices": indices,
            "scale": sizes[1] ** -0.5,
            "logit_cap": source.option(0.0, 0.5, 30.0),
            "temperature_len": source.option(0, 0, 2, 9, 200),
            "sinks": source.option(None, source.normal(query_heads)),
            "return_lse": source.option(False, True),
        }
    )


def native(arguments: Arguments) -> Any:
    """Run each sequence as ``TorchNativeAttnBackend`` does, by PyTorch's own attention."""
    if has_more_than_scores(arguments):
        return None
    q, bounds = arguments["q"], arguments["kv_indptr"].tolist()
    if any(first == last for first, last in itertools.pairwise(bounds)):
        return None
    out = q.new_zeros(*q.shape[:2], arguments["v_buffer"].shape[2])
    for number in range(len(q)):
        slots = arguments["kv_indices"][bounds[number] : bounds[number + 1]].long()
        keys, values = (arguments[name][slots].movedim(0, 1) for name in ("k_buffer", "v_buffer"))
        given = (x[None] for x in (q[number][:, None], keys, values))
        found = scaled_dot_product_attention(*given, scale=arguments["scale"], enable_gqa=True)
        out[number] = found[0, :, 0]
    return out


@like(decode_attention)
def scale_forgotten(**given: Any) -> Outputs:
    return decode_attention(**given | {"scale": 1.0})


@like(decode_attention)
def next_slot_read(**given: Any) -> Outputs:
    slots = len(given["k_buffer"])
    return decode_attention(**given | {"kv_indices": (given["kv_indices"] + 1) % slots})


@like(decode_attention)
def last_key_left_out(**given: Any) -> Outputs:
    """As a window that is one too narrow."""
    bounds = given["kv_indptr"].tolist()
    kept = [given["kv_indices"][a : max(a, b - 1)] for a, b in itertools.pairwise(bounds)]
    fewer = torch.tensor([0, *map(len, kept)], device=given["kv_indptr"].device).cumsum(0)
    indices = torch.cat([*kept, given["kv_indices"][:0]])
    return decode_attention(**given | {"kv_indptr": fewer, "kv_indices": indices})


@like(decode_attention)
def sinks_forgotten(**given: Any) -> Outputs:
    return decode_attention(**given | {"sinks": None})


@like(decode_attention)
def neighbouring_heads_mixed_up(**given: Any) -> Outputs:
    """Query head h has the keys of head ``h % KH`` instead of ``h // G``."""
    kv_heads = given["k_buffer"].shape[1]

    def mixed(x: Any, groups: int) -> Any:
        return x if x is None else x.unflatten(-2, (-1, groups)).transpose(-3, -2).flatten(-3, -2)

    groups = given["q"].shape[1] // kv_heads
    sinks = given.get("sinks")
    changed = {"q": mixed(given["q"], kv_heads)}
    if sinks is not None:
        changed["sinks"] = mixed(sinks[:, None], kv_heads)[:, 0]
    result = decode_attention(**given | changed)
    if isinstance(result, torch.Tensor):
        return mixed(result, groups)
    return mixed(result[0], groups), mixed(result[1][..., None], groups)[..., 0]


@like(decode_attention)
def result_left_as_it_was_without_slots(**given: Any) -> Outputs:
    """What a tensor for the result held stays where a sequence has nothing to attend to."""
    result, out = decode_attention(**given), given.get("out")
    if out is None:
        return result
    has_slots = given["kv_indptr"].diff() > 0
    out[has_slots] = result[has_slots]
    return out


@like(decode_attention)
def logarithm_to_base_two(**given: Any) -> Outputs:
    result = kernel_of(formula, given)
    return (result[0], result[1] / np.log(2)) if isinstance(result, tuple) else result


@like(decode_attention)
def sums_in_a_buffer_of_an_earlier_call(**given: Any) -> Outputs:
    """The next call overwrites the logarithms that this one has returned."""
    return sums_in_a_kept_buffer(decode_attention(**given))


@like(decode_attention)
def keys_before_the_last_512_left_out(**given: Any) -> Outputs:
    """As with a fixed number of blocks."""
    bounds, slots = given["kv_indptr"].tolist(), given["kv_indices"]
    kept = [slots[first:last][-512:] for first, last in itertools.pairwise(bounds)]
    fewer = torch.tensor([0, *map(len, kept)], device=slots.device).cumsum(0)
    return decode_attention(**given | {"kv_indptr": fewer, "kv_indices": torch.cat([*kept, slots[:0]])})


@like(decode_attention)
def largest_score_not_taken_away(**given: Any) -> Outputs:
    """The exponential of a score of 100 is infinite in float32."""
    result = decode_attention(**given)
    if isinstance(result, torch.Tensor):
        _, sums = decode_attention(**given | {"return_lse": True, "out": None})
        return torch.where(sums.unsqueeze(2).exp().float().isinf(), torch.nan, result)
    return result


@like(decode_attention)
def heads_from_16_on_left_out(**given: Any) -> Outputs:
    """A tile holds the queries of 16 heads that share keys."""
    result = decode_attention(**given)
    group = given["q"].shape[1] // given["k_buffer"].shape[1]
    if group > 16:
        (result if isinstance(result, torch.Tensor) else result[0])[:, 16:] = 0
    return result


@like(decode_attention)
def sequences_from_64_on_left_out(**given: Any) -> Outputs:
    result = decode_attention(**given)
    (result if isinstance(result, torch.Tensor) else result[0])[64:] = 0
    return result


WRONG_INTEGERS = wrong_integers(decode_attention)
bounds_taken_for_int32, slots_taken_for_int64 = WRONG_INTEGERS
WRONG_TEMPERATURES = wrong_temperatures(decode_attention, formula)
(
    temperature_forgotten,
    temperature_of_the_next_token,
    temperature_of_short_texts,
    temperature_before_the_cap,
) = WRONG_TEMPERATURES
WRONG_SCALES = wrong_scales(decode_attention)
keys_scale_forgotten, values_scale_forgotten, scales_exchanged, inverse_of_the_scales = WRONG_SCALES

SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=native,
    wrong={
        "cases": (
            scale_forgotten,
            next_slot_read,
            last_key_left_out,
            sinks_forgotten,
            *WRONG_TEMPERATURES,
            neighbouring_heads_mixed_up,
            result_left_as_it_was_without_slots,
            logarithm_to_base_two,
            keys_before_the_last_512_left_out,
            largest_score_not_taken_away,
            heads_from_16_on_left_out,
            sequences_from_64_on_left_out,
            *WRONG_SCALES,
        ),
        "edges": WRONG_INTEGERS,
        "repeat": (sums_in_a_buffer_of_an_earlier_call,),
    },
)

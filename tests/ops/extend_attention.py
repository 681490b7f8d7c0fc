"""All that the tests know of the op ``extend_attention``."""

import itertools
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from sglang_fl.ops import Outputs
from sglang_fl.ops.extend_attention import extend_attention
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
    k: Array,
    v: Array,
    k_buffer: Array,
    v_buffer: Array,
    qo_indptr: Array,
    kv_indptr: Array,
    kv_indices: Array,
    scale: float,
    is_causal: bool = True,
    sliding_window: int = -1,
    logit_cap: float = 0.0,
    temperature_len: int = 0,
    sinks: Array | None = None,
    custom_mask: Array | None = None,
    mask_indptr: Array | None = None,
    k_scale: float | None = None,
    v_scale: float | None = None,
    return_lse: bool = False,
    out: Array | None = None,
    ahead: int = 0,
    is_by_place: bool = False,
    late: int = 0,
    least: float = 1.0,
    is_capped_last: bool = False,
) -> tuple[Array, ...]:
    """Compute it, whatever ``out`` is; with one of the last five wrongly.

    ``ahead`` : a query sees so many keys after its own
    ``is_by_place`` : a tree counts as a text where keys before a query's own are counted
    ``late`` : so many keys too many count as before a query's own
    ``least`` : as of ``temperatures``
    ``is_capped_last`` : as of ``attend``
    """
    out, lse = np.zeros((*q.shape[:2], v.shape[2])), np.full(q.shape[:2], -np.inf)
    for number in range(len(qo_indptr) - 1):
        rows = slice(qo_indptr[number], qo_indptr[number + 1])
        slots = kv_indices[kv_indptr[number] : kv_indptr[number + 1]]
        keys = np.concatenate((stored(k_buffer[slots], k_scale), k[rows]))
        values = np.concatenate((stored(v_buffer[slots], v_scale), v[rows]))
        places, new = np.arange(len(keys)), len(keys) - len(slots)
        is_seen = np.ones((new, len(keys)), dtype=bool)
        if custom_mask is not None:
            tree = custom_mask[mask_indptr[number] :][: new**2].reshape(new, new)
            if not is_by_place:
                above = [np.count_nonzero(row[:at]) for at, row in enumerate(tree)]
                places[len(slots) :] = [len(slots) + count for count in above]
            is_seen[:, len(slots) :] = tree
        # How far a key lies behind a query.
        behind = places[len(slots) :, None] - places
        if is_causal and custom_mask is None:
            is_seen &= behind >= -ahead
        if sliding_window >= 0:
            is_seen &= behind <= sliding_window
        heat = temperatures(places[len(slots) :] + late, temperature_len, least)
        out[rows], lse[rows] = attend(
            q[rows], keys, values, is_seen, scale, logit_cap, sinks, heat, is_capped_last
        )
    return (out, lse) if return_lse else (out,)


def draw(source: Source) -> Drawn:
    query_heads, *sizes = drawn_sizes(source)
    sequences = source.number(0, 3)
    bounds, indices, slots = drawn_lists(source, sequences, source.one_of(4, 40))
    pools = drawn_pools(source, slots, tuple(sizes))
    new = [source.number(0, source.one_of(3, 40)) for _ in range(sequences)]
    tokens = sum(new) + source.one_of(0, 0, 2)
    trees = drawn_trees(source, new) if source.option(False, False, True) else {}
    return Drawn(
        {
            "q": source.rows(tokens, query_heads, sizes[1]),
            "k": source.rows(tokens, sizes[0], sizes[1]),
            "v": source.rows(tokens, sizes[0], sizes[2]),
            **pools,
            "qo_indptr": torch.tensor([0, *new]).cumsum(0).to(source.one_of(torch.int32, torch.int64)),
            "kv_indptr": bounds,
            "kv_indices": indices,
            "scale": sizes[1] ** -0.5,
            "is_causal": source.one_of(True, True, False),
            "sliding_window": source.one_of(-1, 0, 1, 7),
            "logit_cap": source.option(0.0, 0.5, 30.0),
            "temperature_len": source.option(0, 0, 2, 9, 40),
            "sinks": source.option(None, source.normal(query_heads)),
            "return_lse": source.option(False, True),
            **trees,
        }
    )


def drawn_trees(source: Source, counts: list[int]) -> dict[str, torch.Tensor]:
    """Return trees of so many nodes, and where each begins; a node lies below an earlier one, or none."""
    masks, begin = [], source.number(0, 3)
    for count in counts:
        mask = np.eye(count, dtype=bool)
        for node in range(1, count):
            parent = source.number(-1, node - 1)
            mask[node] |= mask[parent] if parent >= 0 else False
        masks.append(mask.flatten())
    return {
        "custom_mask": torch.from_numpy(np.concatenate((np.zeros(begin, dtype=bool), *masks))),
        "mask_indptr": torch.tensor([begin, *map(len, masks)]).cumsum(0),
    }


def native(arguments: Arguments) -> Any:
    """Run each sequence as ``TorchNativeAttnBackend`` does, by PyTorch's own attention."""
    if has_more_than_scores(arguments) or arguments.get("custom_mask") is not None:
        return None
    q, given = arguments["q"], arguments
    out = q.new_zeros(*q.shape[:2], given["v"].shape[2])
    bounds, prefixes = given["qo_indptr"].tolist(), given["kv_indptr"].tolist()
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        if first == last:
            continue
        slots = given["kv_indices"][prefixes[number] : prefixes[number + 1]].long()
        keys, values = (
            torch.cat((given[f"{name}_buffer"][slots], given[name][first:last])).movedim(0, 1)
            for name in ("k", "v")
        )
        mask = torch.ones(last - first, keys.shape[1], dtype=torch.bool)
        if given.get("is_causal", True):
            mask = mask.tril(len(slots))
        if given.get("sliding_window", -1) >= 0:
            mask = mask.triu(len(slots) - given["sliding_window"])
        tensors = (x[None] for x in (q[first:last].movedim(0, 1), keys, values))
        found = scaled_dot_product_attention(*tensors, mask, scale=given["scale"], enable_gqa=True)
        out[first:last] = found[0].movedim(0, 1)
    return out


@like(extend_attention)
def next_key_seen(**given: Any) -> Outputs:
    return kernel_of(formula, given, ahead=1)


@like(extend_attention)
def own_key_not_seen(**given: Any) -> Outputs:
    return kernel_of(formula, given, ahead=-1)


@like(extend_attention)
def window_one_too_wide(**given: Any) -> Outputs:
    window = given.get("sliding_window", -1)
    return extend_attention(**given | {"sliding_window": window + 1 if window >= 0 else window})


@like(extend_attention)
def window_one_too_narrow(**given: Any) -> Outputs:
    return extend_attention(**given | {"sliding_window": max(given.get("sliding_window", -1) - 1, -1)})


@like(extend_attention)
def scale_forgotten(**given: Any) -> Outputs:
    return extend_attention(**given | {"scale": 1.0})


@like(extend_attention)
def next_slot_read(**given: Any) -> Outputs:
    slots = len(given["k_buffer"])
    return extend_attention(**given | {"kv_indices": (given["kv_indices"] + 1) % slots})


@like(extend_attention)
def prefix_of_the_first_sequence(**given: Any) -> Outputs:
    """The bounds of the prefixes are taken to begin at 0, as they need not."""
    return extend_attention(**given | {"kv_indptr": given["kv_indptr"] - given["kv_indptr"][0]})


@like(extend_attention)
def cap_after_the_mask(**given: Any) -> Outputs:
    """What is hidden gets a score of ``-cap``."""
    cap = given.get("logit_cap", 0.0)
    if not cap or not given.get("is_causal", True) or given.get("sliding_window", -1) >= 0:
        return extend_attention(**given)
    return extend_attention(**given | {"is_causal": False})


@like(extend_attention)
def result_left_as_it_was_in_padding(**given: Any) -> Outputs:
    """What a tensor for the result held stays in rows of no sequence."""
    result, out = extend_attention(**given), given.get("out")
    if out is None:
        return result
    rows = slice(given["qo_indptr"][0], given["qo_indptr"][-1])
    out[rows] = result[rows]
    return out


@like(extend_attention)
def trees_taken_for_texts(**given: Any) -> Outputs:
    return extend_attention(**given | {"custom_mask": None, "mask_indptr": None})


@like(extend_attention)
def window_by_the_place_in_the_tree(**given: Any) -> Outputs:
    """A window reaches back from where a token lies among the drafts, not from its place in the text."""
    if given.get("custom_mask") is None or given.get("sliding_window", -1) < 0:
        return extend_attention(**given)
    return kernel_of(formula, given, is_by_place=True)


@like(extend_attention)
def temperature_by_the_place_in_the_tree(**given: Any) -> Outputs:
    """It counts from where a token lies among the drafts, not from its place in the text."""
    if given.get("custom_mask") is None or not given.get("temperature_len"):
        return extend_attention(**given)
    return kernel_of(formula, given, is_by_place=True)


@like(extend_attention)
def tree_of_the_first_sequence(**given: Any) -> Outputs:
    """The bounds of the masks are taken to begin at 0, as they need not."""
    bounds = given.get("mask_indptr")
    return extend_attention(**given | {"mask_indptr": None if bounds is None else bounds - bounds[0]})


@like(extend_attention)
def sums_in_a_buffer_of_an_earlier_call(**given: Any) -> Outputs:
    """The next call overwrites the logarithms that this one has returned."""
    return sums_in_a_kept_buffer(extend_attention(**given))


@like(extend_attention)
def new_keys_scaled(**given: Any) -> Outputs:
    """The scale of the keys in the pool is that of all keys."""
    return extend_attention(**given | {"k": (given["k"] * given.get("k_scale", 1.0)).to(given["k"].dtype)})


@like(extend_attention)
def tokens_from_512_on_left_out(**given: Any) -> Outputs:
    result = extend_attention(**given)
    for first, last in itertools.pairwise(given["qo_indptr"].tolist()):
        (result if isinstance(result, torch.Tensor) else result[0])[first + 512 : last] = 0
    return result


@like(extend_attention)
def prefix_left_out_unless_causal(**given: Any) -> Outputs:
    if given.get("is_causal", True) or given.get("custom_mask") is not None:
        return extend_attention(**given)
    return extend_attention(**given | {"kv_indptr": torch.zeros_like(given["kv_indptr"])})


@like(extend_attention)
def window_for_causal_alone(**given: Any) -> Outputs:
    return extend_attention(**given | ({} if given.get("is_causal", True) else {"sliding_window": -1}))


@like(extend_attention)
def window_reaches_before_the_text(**given: Any) -> Outputs:
    """Where it does, a negative number of keys is taken for none."""
    prefixes, new = given["kv_indptr"].diff(), given["qo_indptr"].diff()
    if given.get("sliding_window", -1) <= int((prefixes + new).max() if len(new) else 0):
        return extend_attention(**given)
    return extend_attention(**given | {"sliding_window": 0})


@like(extend_attention)
def first_token_of_a_sequence_is_row_0(**given: Any) -> Outputs:
    return extend_attention(**given | {"qo_indptr": given["qo_indptr"] - given["qo_indptr"][0]})


WRONG_INTEGERS = wrong_integers(extend_attention)
bounds_taken_for_int32, slots_taken_for_int64 = WRONG_INTEGERS
WRONG_TEMPERATURES = wrong_temperatures(extend_attention, formula)
(
    temperature_forgotten,
    temperature_of_the_next_token,
    temperature_of_short_texts,
    temperature_before_the_cap,
) = WRONG_TEMPERATURES
WRONG_SCALES = wrong_scales(extend_attention)
keys_scale_forgotten, values_scale_forgotten, scales_exchanged, inverse_of_the_scales = WRONG_SCALES

SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=native,
    wrong={
        "cases": (
            next_key_seen,
            own_key_not_seen,
            window_one_too_wide,
            window_one_too_narrow,
            scale_forgotten,
            next_slot_read,
            prefix_of_the_first_sequence,
            cap_after_the_mask,
            result_left_as_it_was_in_padding,
            trees_taken_for_texts,
            window_by_the_place_in_the_tree,
            tree_of_the_first_sequence,
            *WRONG_TEMPERATURES,
            temperature_by_the_place_in_the_tree,
            new_keys_scaled,
            tokens_from_512_on_left_out,
            prefix_left_out_unless_causal,
            window_for_causal_alone,
            window_reaches_before_the_text,
            first_token_of_a_sequence_is_row_0,
            *WRONG_SCALES,
        ),
        "edges": WRONG_INTEGERS,
        "repeat": (sums_in_a_buffer_of_an_earlier_call,),
    },
)

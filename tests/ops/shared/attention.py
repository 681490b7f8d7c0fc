"""What the ops of attention share: softmax attention of one sequence, in float64."""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang_fl.ops import Kernel, Outputs
from sglang_fl.ops.shared.scales import EIGHT_BIT
from tests.ops.shared.distance import as_numpy
from tests.ops.shared.drawing import Source
from tests.ops.subject import Array, like

__all__ = [
    "attend",
    "drawn_lists",
    "drawn_pools",
    "drawn_sizes",
    "has_more_than_scores",
    "kernel_of",
    "stored",
    "sums_in_a_kept_buffer",
    "temperatures",
    "wrong_integers",
    "wrong_scales",
    "wrong_temperatures",
]


def attend(
    q: Array,
    keys: Array,
    values: Array,
    is_seen: Array,
    scale: float,
    logit_cap: float = 0.0,
    sinks: Array | None = None,
    temperatures: Array | float = 1.0,
    is_capped_last: bool = False,
) -> tuple[Array, Array]:
    """Run one sequence: (N, H, D), (L, KH, D), (L, KH, DV) and (N, L); head by head, from its definition.

    ``temperatures``, (N,), multiply the scores of each query behind their cap; with ``is_capped_last`` before
    it, which is wrong.
    """
    out, lse = np.zeros((*q.shape[:2], values.shape[2])), np.full(q.shape[:2], -np.inf)
    for head in range(q.shape[1]):
        shared = head * keys.shape[1] // q.shape[1]
        scores = scale * np.array(q[:, head] @ keys[:, shared].T)
        if is_capped_last:
            scores = (scores.T * temperatures).T
        if logit_cap:
            scores = logit_cap * np.tanh(scores / logit_cap)
        if not is_capped_last:
            scores = (scores.T * temperatures).T
        # No score of these tests is so large that its exponential overflows in float64.
        terms = np.where(is_seen, np.exp(scores), 0.0)
        total = terms.sum(1) + (0.0 if sinks is None else np.exp(sinks[head]))
        filled = total > 0
        out[filled, head] = (terms[filled] @ values[:, shared]) / total[filled, None]
        lse[filled, head] = np.log(total[filled])
    return out, lse


def temperatures(places: Array, temperature_len: int, least: float = 1.0) -> Array:
    """Return what the scores of queries with so many keys before their own are multiplied by, (N,).

    With another ``least`` wrongly: also those of short texts are multiplied.
    """
    if not temperature_len:
        return np.ones(len(places))
    return np.array(
        [max(least, math.log(place) / math.log(temperature_len)) if place else 1.0 for place in places]
    )


def has_more_than_scores(arguments: dict[str, Any]) -> bool:
    """Whether a call has what PyTorch's own attention has not: caps, temperatures, sinks, scales, the sum."""
    has_tensors = any(arguments.get(name) is not None for name in ("sinks", "k_scale"))
    return has_tensors or any(map(arguments.get, ("logit_cap", "temperature_len", "return_lse")))


def kernel_of(formula: Callable[..., tuple[Array, ...]], given: dict[str, Any], **mistake: Any) -> Any:
    """Return what a kernel does that computes a formula with a mistake in it."""
    results = formula(**{name: as_numpy(value) for name, value in given.items()}, **mistake)
    o, *lse = (torch.from_numpy(np.asarray(result)).to(given["q"].device) for result in results)
    o = o.to(given["q"].dtype)
    wide = torch.promote_types(given["q"].dtype, torch.float32)
    return (o, lse[0].to(wide)) if lse else o


_KEPT: dict[Any, Tensor] = {}


def sums_in_a_kept_buffer(results: Outputs) -> Outputs:
    """Return the logarithms, if any, in a buffer that each result of their shape and dtype gets."""
    if isinstance(results, Tensor):
        return results
    o, lse = results
    kept = _KEPT.setdefault((lse.shape, lse.dtype), torch.empty_like(lse))
    return o, kept.copy_(lse)


def drawn_sizes(source: Source) -> tuple[int, int, int, int]:
    """Return numbers of query heads, of heads of keys, and of elements of a key and of a value."""
    heads = source.number(1, 3)
    return heads * source.number(1, 3), heads, source.number(1, 9), source.number(1, 9)


def drawn_lists(source: Source, sequences: int, longest: int) -> tuple[Tensor, Tensor, int]:
    """Return bounds, slots, and how many slots the pool has; sequences may share some, and may have none."""
    lengths = [source.number(0, longest) for _ in range(sequences)]
    slots = sum(lengths) + source.number(1, 4)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(source.one_of(torch.int32, torch.int64))
    return bounds, source.integers(slots, sum(lengths) + source.one_of(0, 3)), slots


def drawn_pools(source: Source, slots: int, sizes: tuple[int, int, int]) -> dict[str, Any]:
    """Return pools of keys and of values, the second one a view of the first or not, and scales, if any."""
    heads, keys, values = sizes
    padding = source.one_of(0, 0, 5)
    dtype = source.option(source.dtype, source.dtype, *EIGHT_BIT)
    k_buffer = source.normal(slots, heads * keys + padding).to(dtype)
    k_buffer = k_buffer[:, : heads * keys].unflatten(1, (heads, keys))
    is_latent = values <= keys and source.one_of(False, True)
    v_buffer = k_buffer[..., :values] if is_latent else source.rows(slots, heads, values, dtype=dtype)
    pools = {"k_buffer": k_buffer, "v_buffer": v_buffer}
    if dtype is source.dtype and source.option(True, True, False):
        return pools
    return pools | {name: source.one_of(0.3, 1.0, 1.7) for name in ("k_scale", "v_scale")}


def stored(pool: Array, scale: float | None) -> Array:
    """Return what lies in a pool with its scale."""
    return pool if scale is None else pool * scale


def wrong_integers(reference: Kernel) -> tuple[Kernel, ...]:
    """Return kernels that take bounds or slots for integers of one size, each in one way."""

    @like(reference)
    def bounds_taken_for_int32(**given: Any) -> Outputs:
        bounds = given["kv_indptr"].contiguous()
        words = bounds.view(torch.int32)[: len(bounds)].cummax(0).values  # no sequence has less than no key
        return reference(**given | {"kv_indptr": words})

    @like(reference)
    def slots_taken_for_int64(**given: Any) -> Outputs:
        slots = given["kv_indices"].contiguous()
        if slots.dtype is torch.int32:  # one slot for two, and what lies behind the list
            slots = torch.cat([slots[::2], slots[::2]])[: len(slots)]
        return reference(**given | {"kv_indices": slots})

    return bounds_taken_for_int32, slots_taken_for_int64


def wrong_scales(reference: Kernel) -> tuple[Kernel, ...]:
    """Return kernels that take the scales of pools wrongly, each in one way."""

    @like(reference)
    def keys_scale_forgotten(**given: Any) -> Outputs:
        return reference(**given | ({"k_scale": 1.0} if "k_scale" in given else {}))

    @like(reference)
    def values_scale_forgotten(**given: Any) -> Outputs:
        return reference(**given | ({"v_scale": 1.0} if "v_scale" in given else {}))

    @like(reference)
    def scales_exchanged(**given: Any) -> Outputs:
        if "k_scale" in given:
            given["k_scale"], given["v_scale"] = given["v_scale"], given["k_scale"]
        return reference(**given)

    @like(reference)
    def inverse_of_the_scales(**given: Any) -> Outputs:
        scales = ({name: 1 / given[name]} for name in ("k_scale", "v_scale") if name in given)
        return reference(**functools.reduce(operator.or_, scales, given))

    return keys_scale_forgotten, values_scale_forgotten, scales_exchanged, inverse_of_the_scales


def wrong_temperatures(reference: Kernel, formula: Callable[..., tuple[Array, ...]]) -> tuple[Kernel, ...]:
    """Return kernels that take the temperature by position wrongly, each in one way."""

    @like(reference)
    def temperature_forgotten(**given: Any) -> Outputs:
        return reference(**given | {"temperature_len": 0})

    @like(reference)
    def temperature_of_the_next_token(**given: Any) -> Outputs:
        """The own key counts as one before itself."""
        return kernel_of(formula, given, late=1)

    @like(reference)
    def temperature_of_short_texts(**given: Any) -> Outputs:
        return kernel_of(formula, given, least=0.0)

    @like(reference)
    def temperature_before_the_cap(**given: Any) -> Outputs:
        return kernel_of(formula, given, is_capped_last=True)

    return (
        temperature_forgotten,
        temperature_of_the_next_token,
        temperature_of_short_texts,
        temperature_before_the_cap,
    )

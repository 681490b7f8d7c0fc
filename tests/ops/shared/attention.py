"""What the ops of attention share: softmax attention of one sequence, in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang_fl.ops import Outputs
from tests.ops.shared.distance import as_numpy
from tests.ops.shared.drawing import Source
from tests.ops.subject import Array

__all__ = [
    "attend",
    "drawn_lists",
    "drawn_pools",
    "drawn_sizes",
    "has_more_than_scores",
    "kernel_of",
    "sums_in_a_kept_buffer",
]


def attend(
    q: Array,
    keys: Array,
    values: Array,
    is_seen: Array,
    scale: float,
    logit_cap: float = 0.0,
    sinks: Array | None = None,
) -> tuple[Array, Array]:
    """Run one sequence: (N, H, D), (L, KH, D), (L, KH, DV) and (N, L); head by head, from its definition."""
    out, lse = np.zeros((*q.shape[:2], values.shape[2])), np.full(q.shape[:2], -np.inf)
    for head in range(q.shape[1]):
        shared = head * keys.shape[1] // q.shape[1]
        scores = scale * np.array(q[:, head] @ keys[:, shared].T)
        if logit_cap:
            scores = logit_cap * np.tanh(scores / logit_cap)
        # No score of these tests is so large that its exponential overflows in float64.
        terms = np.where(is_seen, np.exp(scores), 0.0)
        total = terms.sum(1) + (0.0 if sinks is None else np.exp(sinks[head]))
        filled = total > 0
        out[filled, head] = (terms[filled] @ values[:, shared]) / total[filled, None]
        lse[filled, head] = np.log(total[filled])
    return out, lse


def has_more_than_scores(arguments: dict[str, Any]) -> bool:
    """Whether a call has what PyTorch's own attention has not: a cap, sinks, the sum."""
    return arguments.get("sinks") is not None or any(map(arguments.get, ("logit_cap", "return_lse")))


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


def drawn_pools(source: Source, slots: int, sizes: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return pools of keys and of values, the second one a view of the first or not."""
    heads, keys, values = sizes
    padding = source.one_of(0, 0, 5)
    k_buffer = source.normal(slots, heads * keys + padding).to(source.dtype)
    k_buffer = k_buffer[:, : heads * keys].unflatten(1, (heads, keys))
    if values <= keys and source.one_of(False, True):
        return k_buffer, k_buffer[..., :values]
    return k_buffer, source.rows(slots, heads, values)

"""What the ops of attention over a paged pool share: checks, gathering by slot, scores, sample pools."""

import math

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Bound, Outputs, compute_dtype
from sglang_fl.ops.shared.scales import check_scales

__all__ = [
    "LARGE_SCORES",
    "check_out",
    "check_pools",
    "check_temperature",
    "gathered",
    "may_lack_keys",
    "operand_dtype",
    "raise_scores",
    "rows_of_heads",
    "sample_out",
    "sample_pools",
    "shares_keys",
    "sizes",
    "soft_capped",
    "temperatures",
]

#: For calls whose scores lie around 100: rounded in float32 such a score is off by about as many units, and
#: its weight with it.
LARGE_SCORES = Bound(half=2, single=1024)


def check_pools(
    op: str,
    q: Tensor,
    k_buffer: Tensor,
    v_buffer: Tensor,
    kv_indices: Tensor,
    sinks: Tensor | None,
    k_scale: float | None = None,
    v_scale: float | None = None,
) -> None:
    """Raise ``ContractError`` where queries and a pool of keys and values do not fit."""
    if q.dim() != 3 or k_buffer.dim() != 3 or v_buffer.dim() != 3:
        raise ContractError(
            f"{op}: q {tuple(q.shape)}, k_buffer {tuple(k_buffer.shape)} and v_buffer "
            f"{tuple(v_buffer.shape)} need three axes: rows, heads, elements"
        )
    if q.shape[2] != k_buffer.shape[2] or k_buffer.shape[:2] != v_buffer.shape[:2]:
        raise ContractError(
            f"{op}: q {tuple(q.shape)}, k_buffer {tuple(k_buffer.shape)} and v_buffer "
            f"{tuple(v_buffer.shape)} do not fit"
        )
    if not k_buffer.shape[1] or q.shape[1] % k_buffer.shape[1]:
        raise ContractError(
            f"{op}: {q.shape[1]} query heads are no multiple of {k_buffer.shape[1]} heads of keys"
        )
    if kv_indices.dim() != 1:
        raise ContractError(f"{op}: kv_indices {tuple(kv_indices.shape)} needs one axis")
    if sinks is not None and sinks.shape != q.shape[1:2]:
        raise ContractError(f"{op}: sinks {tuple(sinks.shape)}, but there are {q.shape[1]} heads")
    check_scales(op, k_buffer, v_buffer, k_scale, v_scale)


def check_out(op: str, out: Tensor | None, q: Tensor, values: Tensor) -> None:
    """Raise ``ContractError`` where the tensor for the result is not as the result is."""
    wanted = (*q.shape[:2], values.shape[2])
    if out is not None and (out.shape != wanted or out.dtype != q.dtype):
        raise ContractError(f"{op}: out {tuple(out.shape)} {out.dtype} is not {wanted} {q.dtype}")


def check_temperature(op: str, temperature_len: int) -> None:
    """Raise ``ContractError`` where there is no logarithm of a length to divide by."""
    if temperature_len < 0 or temperature_len == 1:
        raise ContractError(f"{op}: temperature_len {temperature_len} is neither 0, for none, nor at least 2")


def shares_keys(keys: Tensor, values: Tensor) -> bool:
    """Whether values may be the first part of the keys, by where both begin and how they lie."""
    return values.data_ptr() == keys.data_ptr() and values.stride() == keys.stride()


def rows_of_heads(slots: Tensor, heads: int) -> Tensor:
    """Return the rows of some slots in a pool whose first two axes are one, head by head.

    Matrix products want one head after the other. Gathering whole slots and swapping the axes takes three
    times as long.

    Parameters
    ----------
    slots : Tensor, (N, C), an integer dtype
    heads : of the pool

    Returns
    -------
    Tensor, (N, heads, C)
    """
    return slots.unsqueeze(1) * heads + torch.arange(heads, device=slots.device)[:, None]


def gathered(buffer: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a pool, (S, KH, D), as ``rows_of_heads`` counts them: (N, KH, C, D), dense."""
    found = buffer.flatten(0, 1).index_select(0, rows.flatten())
    return found.view(*rows.shape, buffer.shape[2])


def operand_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype in which PyTorch's own attention, without scales, takes these tensors.

    bfloat16 on a CPU as it is: scores, exponentials and sums are formed in float32 there, and a weight is
    rounded to bfloat16 where it meets a value, which is off by less than the result's own rounding. All else
    in the dtype that references compute in. float16, where small weights would be lost, is one of those.
    """
    is_kept = all(tensor.dtype is torch.bfloat16 and tensor.device.type == "cpu" for tensor in tensors)
    return torch.bfloat16 if is_kept else compute_dtype(*tensors)


def may_lack_keys(results: Tensor, first_keys: Tensor) -> Tensor:
    """Return where PyTorch's attention may have left out keys whose scores are not numbers, (N, H), bool.

    That of a CPU takes scores for masked where none that it has met is a number: those of a query that is
    not, the result of which is 0 then, and those of keys that a sequence begins with.

    Parameters
    ----------
    results : Tensor, (N, H, DV), of queries that see something
    first_keys : Tensor, (N, KH, D), the first key that each of them may see, or (1, KH, D), that of all
    """
    group = results.shape[1] // first_keys.shape[1]
    is_number = first_keys.isfinite().all(2).repeat_interleave(group, 1)
    return (results[..., 0] == 0) | ~is_number


def soft_capped(scores: Tensor, cap: float) -> Tensor:
    """Return ``cap tanh(scores / cap)``, or the scores themselves where the cap is 0."""
    return cap * torch.tanh(scores / cap) if cap > 0 else scores


def temperatures(positions: Tensor, temperature_len: int) -> Tensor:
    """Return what scores are multiplied by, ``max(1, log(position) / log(temperature_len))``.

    Parameters
    ----------
    positions : Tensor, a floating dtype: of queries
    temperature_len : at least 2
    """
    return (positions.clamp_min(1.0).log() / math.log(temperature_len)).clamp_min(1.0)


def sizes(truth: Outputs, of_sizes: Outputs) -> tuple[Tensor, ...]:
    """Return how large the terms are that results of attention are made of.

    Parameters
    ----------
    truth : the results, or the results and the logarithm of the sum
    of_sizes : the same for the sizes of the values: a result may cancel
    """
    results = (truth,) if isinstance(truth, Tensor) else tuple(truth)
    size = of_sizes if isinstance(of_sizes, Tensor) else of_sizes[0]
    # A logarithm near 0 comes from scores that are not.
    return (size, *(lse.abs().clamp_min(1.0) for lse in results[1:]))


def sample_out(rows: int, heads: int, values: int, dtype: torch.dtype) -> Tensor:
    """Return a tensor for results, full of what is no number, with something between the rows."""
    return torch.full((rows, heads * values + 8), torch.nan, dtype=dtype)[:, : heads * values].view(
        rows, heads, values
    )


def raise_scores(q: Tensor, *keys: Tensor) -> None:
    """Add the same to all queries and keys, so that scores lie around 100 and as far apart as before.

    Their exponentials overflow in float32 unless the largest score is taken away first, and in 16 bit such
    scores are as coarse as 1/16.

    Parameters
    ----------
    q, keys : written in place; scores are divided by the root of the number of elements
    """
    common = (100.0 * q.shape[-1] ** -0.5) ** 0.5
    for rows in (q, *keys):
        rows.add_(common)


def sample_pools(
    slots: int,
    sizes: tuple[int, int, int],
    dtype: torch.dtype,
    generator: torch.Generator,
    layout: str = "dense",
    scales: tuple[float, float] = (1.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Return a pool of keys and one of values.

    Parameters
    ----------
    slots : how many
    sizes : heads, elements of a key, elements of a value
    dtype : of both
    generator : seeded
    layout : ``dense``; ``latent``: the values are the first elements of the keys; ``strided``: there is
        something between the slots
    scales : what keys and values were divided by
    """
    heads, keys, values = sizes
    padding = 8 if layout == "strided" else 0

    def pool(size: int, scale: float) -> Tensor:
        wide = torch.randn(slots, heads * size + padding, generator=generator) / scale
        return wide.to(dtype)[:, : heads * size].view(slots, heads, size)

    k_buffer = pool(keys, scales[0])
    if layout == "latent":
        return k_buffer, k_buffer[..., :values]
    return k_buffer, pool(values, scales[1])

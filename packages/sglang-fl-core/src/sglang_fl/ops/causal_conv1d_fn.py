"""The op ``causal_conv1d_fn``: a short convolution over whole prompts, from and to a pool of states."""

from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Bound, Case, Op, Outputs, compute_dtype
from sglang_fl.ops.shared.convolution import activated, check_convolution, convolved
from sglang_fl.ops.shared.runs import sequences

__all__ = ["OP", "causal_conv1d_fn", "check_prompts"]


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv_states: Tensor,
    query_start_loc: Tensor,
    cache_indices: Tensor,
    has_initial_state: Tensor,
    activation: str | None,
) -> Outputs:
    """Convolve each channel with its own taps, in sequences that lie one after the other.

    ``y_t = act(bias + sum_j weight[:, j] x[:, t - width + 1 + j])``. What lies before a sequence's first
    token is its state, or 0.

    Source: SGLang ``kernels/ops/mamba/causal_conv1d_triton.py``, ``causal_conv1d_fn``, as
    ``GDNAttnBackend`` and ``MambaMixer2`` call it.

    Parameters
    ----------
    x : Tensor, (dim, T), float16, bfloat16 or float32, any strides; not written
    weight : Tensor, (dim, width), a floating dtype; the last tap meets the token itself; not written
    bias : Tensor, (dim,), a floating dtype, or None; not written
    conv_states : Tensor, (slots, dim, width - 1), a floating dtype, any strides: the pool of states, each the
        last inputs of a sequence. Row ``cache_indices[n]`` is read before sequence n if
        ``has_initial_state[n]``, and **updated in place** after it; other rows are neither read nor written.
        A sequence without tokens leaves its row as it is. No two elements share memory
    query_start_loc : Tensor, (N + 1,), int32 or int64: where each sequence begins and the last one ends;
        behind that results are left open
    cache_indices : Tensor, (N,), int32 or int64, no row twice; a negative one is padding: no state is read or
        written, and the sequence's results are left open
    has_initial_state : Tensor, (N,), bool; where it is False, the row may hold anything, NaN too
    activation : ``silu`` or None

    Returns
    -------
    y : Tensor, (dim, T), dtype of ``x``; summed in float32 and rounded once

    Raises
    ------
    ContractError : shapes that do not fit, an activation that is none of these, or states that share memory
    """
    check_prompts(x, weight, bias, conv_states, query_start_loc, cache_indices, has_initial_state, activation)
    dtype = compute_dtype(x, conv_states)
    y = torch.zeros(x.shape, dtype=dtype, device=x.device)
    runs = sequences(query_start_loc, cache_indices)
    for (first, last, index), is_continued in zip(runs, has_initial_state.tolist(), strict=True):
        if index < 0 or first == last:
            continue
        row = conv_states[index]
        # Not the row times 0, which a NaN in it would survive.
        before = row.to(dtype) if is_continued else torch.zeros_like(row, dtype=dtype)
        seen = torch.cat([before, x[:, first:last].to(dtype)], dim=1)
        y[:, first:last] = convolved(seen, weight, bias)
        row.copy_(seen[:, seen.shape[1] - row.shape[1] :])
    return activated(y, activation).to(x.dtype)


def check_prompts(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv_states: Tensor,
    query_start_loc: Tensor,
    cache_indices: Tensor,
    has_initial_state: Tensor,
    activation: str | None,
) -> None:
    """Raise ``ContractError`` where the arguments do not fit each other, or states share memory."""
    if x.dim() != 2:
        raise ContractError(f"causal_conv1d_fn: x {tuple(x.shape)} needs two axes: channels, tokens")
    check_convolution("causal_conv1d_fn", x.shape[0], weight, bias, conv_states, cache_indices, activation)
    count = len(cache_indices)
    if query_start_loc.shape != (count + 1,) or has_initial_state.shape != (count,):
        raise ContractError(
            f"causal_conv1d_fn: query_start_loc {tuple(query_start_loc.shape)}, cache_indices ({count},) and "
            f"has_initial_state {tuple(has_initial_state.shape)} are not for the same sequences"
        )


def _like(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    conv_states: Tensor,
    query_start_loc: Tensor,
    cache_indices: Tensor,
    has_initial_state: Tensor,
    activation: str | None,
) -> Tensor:
    check_prompts(x, weight, bias, conv_states, query_start_loc, cache_indices, has_initial_state, activation)
    return torch.empty_like(x)


def _magnitude(truth: Outputs, **arguments: Any) -> tuple[Tensor, ...]:
    sizes = {name: arguments[name].abs() for name in ("x", "weight", "conv_states")}
    sizes["bias"] = None if arguments["bias"] is None else arguments["bias"].abs()
    of_sizes = causal_conv1d_fn(**arguments | sizes | {"activation": None})
    return of_sizes, truth[1]  # type: ignore[return-value]


def _without_padding(outputs: Outputs, arguments: Arguments) -> tuple[Tensor, ...]:
    """Set to zero what belongs to no sequence, or to one with a negative index; there it is left open."""
    y, *rest = outputs
    y, bounds = y.clone(), arguments["query_start_loc"]
    for first, last, index in sequences(bounds, arguments["cache_indices"]):
        if index < 0:
            y[:, first:last] = 0
    y[:, int(bounds[-1]) :] = 0
    return (y, *rest)


def _case(
    name: str,
    *lengths: int,
    channels: int = 48,
    width: int = 4,
    indices: tuple[int, ...] | None = None,
    continued: bool | None = None,
    has_bias: bool = True,
    activation: str | None = "silu",
    beyond: int = 0,
    layout: str = "packed",
    is_poisoned: bool = False,
) -> Case:
    """Return a case; ``continued`` says whether sequences have a state, None: every second one."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        count, tokens = len(lengths), sum(lengths) + beyond
        slots = count + 3
        x = normal(tokens, channels + 16).to(dtype)[:, :channels].t()
        states = normal(slots, width - 1, channels).to(dtype).mT
        if layout == "dense":
            x, states = x.contiguous(), states.contiguous()
        drawn = torch.randperm(slots, generator=generator)[:count].to(torch.int32)
        rows = drawn if indices is None else torch.tensor(indices, dtype=torch.int32)
        has = torch.arange(count) % 2 == 0 if continued is None else torch.full((count,), continued)
        if is_poisoned:
            named = rows[has]
            states[[row for row in range(slots) if row not in named]] = torch.nan
        return {
            "x": x,
            "weight": normal(channels, width).to(dtype),
            "bias": normal(channels).to(dtype) if has_bias else None,
            "conv_states": states,
            "query_start_loc": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
            "cache_indices": rows,
            "has_initial_state": has,
            "activation": activation,
        }

    return Case(name, make)


OP = Op(
    causal_conv1d_fn,
    cases=(
        _case("one-token", 1),
        _case("fewer-tokens-than-taps", 1, 2, 3, 1, continued=True),
        _case("first-chunks", 5, 37, 1, continued=False),
        _case("continued", 5, 37, 1, continued=True),
        _case("several-blocks", 300, 9),
        _case("mixed", 5, 1, 70, 2),
        _case("no-tokens", 0, 4, 0),
        _case("no-sequences"),
        _case("padding", 5, 9, 3, indices=(3, -1, 0)),
        _case("tokens-behind-the-last", 5, 9, beyond=4),
        _case("dense", 5, 9, 3, layout="dense"),
        _case("two-taps", 5, 9, width=2, continued=True),
        _case("no-bias", 5, 9, has_bias=False),
        _case("no-activation", 5, 9, activation=None),
        _case("other-states-not-finite", 5, 9, 2, is_poisoned=True),
    ),
    # A product may be rounded to the dtype before it is added, and the result is.
    bound=Bound(half=2, single=16),
    rows={"x": 1},
    sequences="query_start_loc",
    of_sequences=("has_initial_state",),
    updates=("conv_states",),
    writes_rows={"conv_states": "cache_indices"},
    magnitude=_magnitude,
    comparable=_without_padding,
    like=_like,
    captured=False,  # it is for prompts
)

"""The op ``causal_conv1d_update``: one more token of a short convolution for each request."""

from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Bound, Case, Op, Outputs, compute_dtype
from sglang_fl.ops.shared.convolution import activated, check_convolution, convolved

__all__ = ["OP", "causal_conv1d_update", "check_update"]


def causal_conv1d_update(
    x: Tensor,
    conv_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    conv_state_indices: Tensor,
) -> Tensor:
    """Convolve each channel with its own taps: the last inputs of a request, and the new one.

    As ``causal_conv1d_fn`` for sequences of one token that all have a state.

    Source: SGLang ``kernels/ops/mamba/causal_conv1d_triton.py``, ``causal_conv1d_update``, as
    ``GDNAttnBackend`` and ``MambaMixer2`` call it.

    Parameters
    ----------
    x : Tensor, (B, dim), float16, bfloat16 or float32, any strides; not written
    conv_states : Tensor, (slots, dim, width - 1), see ``causal_conv1d_fn``; row ``conv_state_indices[n]`` is
        **updated in place**
    weight : Tensor, (dim, width), a floating dtype; the last tap meets the token itself; not written
    bias : Tensor, (dim,), a floating dtype, or None; not written
    activation : ``silu`` or None
    conv_state_indices : Tensor, (B,), int32 or int64, no row twice; a negative one is padding: no state is
        read or written, and its result is left open

    Returns
    -------
    y : Tensor, (B, dim), dtype of ``x``; summed in float32 and rounded once

    Raises
    ------
    ContractError : shapes that do not fit, an activation that is none of these, or states that share memory
    """
    check_update(x, conv_states, weight, bias, activation, conv_state_indices)
    dtype = compute_dtype(x, conv_states)
    y = torch.zeros(x.shape, dtype=dtype, device=x.device)
    is_row = conv_state_indices >= 0
    rows = conv_state_indices[is_row].long()
    new = x[is_row].unsqueeze(-1).to(dtype)
    seen = torch.cat([conv_states[rows].to(dtype), new], dim=-1)
    y[is_row] = convolved(seen, weight, bias).squeeze(-1)
    conv_states[rows] = seen[..., 1:].to(conv_states.dtype)
    return activated(y, activation).to(x.dtype)


def check_update(
    x: Tensor,
    conv_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    conv_state_indices: Tensor,
) -> None:
    """Raise ``ContractError`` where the arguments do not fit each other, or states share memory."""
    if x.dim() != 2:
        raise ContractError(f"causal_conv1d_update: x {tuple(x.shape)} needs two axes: requests, channels")
    check_convolution(
        "causal_conv1d_update", x.shape[1], weight, bias, conv_states, conv_state_indices, activation
    )
    if len(conv_state_indices) != len(x):
        raise ContractError(
            f"causal_conv1d_update: conv_state_indices {tuple(conv_state_indices.shape)}, but there are "
            f"{len(x)} requests"
        )


def _like(
    x: Tensor,
    conv_states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    conv_state_indices: Tensor,
) -> Tensor:
    check_update(x, conv_states, weight, bias, activation, conv_state_indices)
    return torch.empty_like(x)


def _magnitude(truth: Outputs, **arguments: Any) -> tuple[Tensor, ...]:
    sizes = {name: arguments[name].abs() for name in ("x", "weight", "conv_states")}
    sizes["bias"] = None if arguments["bias"] is None else arguments["bias"].abs()
    return causal_conv1d_update(**arguments | sizes | {"activation": None}), truth[1]


def _without_padding(outputs: Outputs, arguments: Arguments) -> tuple[Tensor, ...]:
    """Set to zero what belongs to padding; there it is left open."""
    y, *rest = outputs
    is_padding = (arguments["conv_state_indices"] < 0).to(y.device)
    return (y.masked_fill(is_padding[:, None], 0), *rest)


def _case(
    name: str,
    batch: int,
    *,
    channels: int = 48,
    width: int = 4,
    absent: bool = False,
    has_bias: bool = True,
    activation: str | None = "silu",
    layout: str = "packed",
    is_poisoned: bool = False,
) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        slots = batch + 3
        states = normal(slots, width - 1, channels).to(dtype).mT
        rows = torch.randperm(slots, generator=generator)[:batch].to(torch.int32)
        if is_poisoned:
            states[[row for row in range(slots) if row not in rows]] = torch.nan
        if absent:
            rows[::2] = -1
        return {
            "x": normal(batch, channels + 16).to(dtype)[:, :channels],
            "conv_states": states.contiguous() if layout == "dense" else states,
            "weight": normal(channels, width).to(dtype),
            "bias": normal(channels).to(dtype) if has_bias else None,
            "activation": activation,
            "conv_state_indices": rows,
        }

    return Case(name, make)


OP = Op(
    causal_conv1d_update,
    cases=(
        _case("empty", 0),
        _case("one-request", 1),
        _case("odd-requests", 7),
        _case("dense", 5, layout="dense"),
        _case("padding", 5, absent=True),
        _case("two-taps", 5, width=2),
        _case("no-bias", 5, has_bias=False),
        _case("no-activation", 5, activation=None),
        _case("other-states-not-finite", 5, is_poisoned=True),
    ),
    # As of ``causal_conv1d_fn``.
    bound=Bound(half=2, single=16),
    rows={"x": 0, "conv_state_indices": 0},
    updates=("conv_states",),
    writes_rows={"conv_states": "conv_state_indices"},
    magnitude=_magnitude,
    comparable=_without_padding,
    like=_like,
)

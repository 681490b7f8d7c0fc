"""What the ops of the causal convolution share: checks, the sum over the taps."""

import torch.nn.functional as F
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.shared.overlap import shares_memory

__all__ = ["activated", "check_convolution", "convolved"]

_ACTIVATIONS = (None, "silu")


def check_convolution(
    op: str,
    channels: int,
    weight: Tensor,
    bias: Tensor | None,
    conv_states: Tensor,
    indices: Tensor,
    activation: str | None,
) -> None:
    """Raise ``ContractError`` where a convolution and its pool of states do not fit.

    Parameters
    ----------
    op : the op's name
    channels : how many the input has
    weight, bias, conv_states, indices, activation : see ``causal_conv1d_fn``
    """
    if activation not in _ACTIVATIONS:
        raise ContractError(f"{op}: activation {activation!r}; valid: None, 'silu'")
    if weight.dim() != 2 or weight.shape[0] != channels or (bias is not None and bias.shape != (channels,)):
        raise ContractError(
            f"{op}: weight {tuple(weight.shape)} or bias "
            f"{None if bias is None else tuple(bias.shape)} does not fit {channels} channels"
        )
    if conv_states.dim() != 3 or conv_states.shape[1:] != (channels, weight.shape[1] - 1):
        raise ContractError(
            f"{op}: conv_states {tuple(conv_states.shape)} is no pool of states "
            f"{(channels, weight.shape[1] - 1)}"
        )
    if indices.dim() != 1:
        raise ContractError(f"{op}: the indices of the states {tuple(indices.shape)} need one axis")
    if shares_memory(conv_states):
        raise ContractError(
            f"{op}: elements of conv_states {tuple(conv_states.shape)}, strides {conv_states.stride()}, "
            f"share memory"
        )


def convolved(seen: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``sum_j weight[:, j] seen[..., t + j] + bias`` for each t at which all taps meet something.

    Parameters
    ----------
    seen : Tensor, (..., dim, width - 1 + T), in the dtype to compute in: the elements before, and the T new
        ones
    weight : Tensor, (dim, width)
    bias : Tensor, (dim,), or None

    Returns
    -------
    Tensor, (..., dim, T)
    """
    width = weight.shape[1]
    tokens = seen.shape[-1] - width + 1
    total = seen.new_zeros(*seen.shape[:-1], tokens)
    for tap in range(width):
        total += weight[:, tap, None].to(seen.dtype) * seen[..., tap : tap + tokens]
    return total if bias is None else total + bias.to(seen.dtype)[:, None]


def activated(x: Tensor, activation: str | None) -> Tensor:
    """Return ``x sigmoid(x)`` where the activation is ``silu``, else x."""
    return F.silu(x) if activation == "silu" else x

"""SGLang's functions of the causal convolution, with its signatures, over the object that layer 2 knows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.sglang_adapter.without_triton.kernels import CausalConvolution

__all__ = ["prefill_by", "update_by"]

#: What SGLang may pass, and what means the same as leaving it out: padding is -1 in the contract too.
_WITHOUT_EFFECT = {"pad_slot_id": (-1,), "validate_data": (False,), "block_table": ()}


def prefill_by(convolution: CausalConvolution) -> Callable[..., Tensor]:
    """Return ``causal_conv1d_fn`` as SGLang calls it."""

    def causal_conv1d_fn(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        conv_states: Tensor,
        query_start_loc: Tensor,
        seq_lens_cpu: Any = None,
        cache_indices: Tensor | None = None,
        has_initial_state: Tensor | None = None,
        activation: str | bool | None = "silu",
        **given: Any,
    ) -> Tensor:
        _refuse_others("causal_conv1d_fn", given)
        if cache_indices is None:
            raise UnsupportedError("causal_conv1d_fn without cache_indices has no plain PyTorch path")
        if has_initial_state is None:
            has_initial_state = torch.zeros_like(cache_indices, dtype=torch.bool)
        states = (conv_states, query_start_loc, cache_indices, has_initial_state)
        y: Tensor = convolution.prefill(x, weight, bias, *states, _activation(activation))
        return y

    return causal_conv1d_fn


def update_by(convolution: CausalConvolution) -> Callable[..., Tensor]:
    """Return ``causal_conv1d_update`` as SGLang calls it."""

    def causal_conv1d_update(
        x: Tensor,
        conv_state: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str | bool | None = None,
        cache_seqlens: Tensor | None = None,
        conv_state_indices: Tensor | None = None,
        **given: Any,
    ) -> Tensor:
        _refuse_others("causal_conv1d_update", {"cache_seqlens": cache_seqlens, **given})
        if x.dim() != 2 or conv_state_indices is None:
            raise UnsupportedError(
                f"causal_conv1d_update of {tuple(x.shape)}, drafted tokens or no indices of states, has no "
                f"plain PyTorch path"
            )
        y: Tensor = convolution.update(
            x, conv_state, weight, bias, _activation(activation), conv_state_indices
        )
        return y

    return causal_conv1d_update


def _activation(given: str | bool | None) -> str | None:
    """Return what the contract calls it: SGLang has four words for two things."""
    return "silu" if given in (True, "silu", "swish") else None


def _refuse_others(function: str, given: dict[str, Any]) -> None:
    """Raise ``UnsupportedError`` for an argument that the ops do not have and that changes the result."""
    for name, value in given.items():
        if value is not None and value not in _WITHOUT_EFFECT.get(name, ()):
            raise UnsupportedError(f"{function} with {name} has no plain PyTorch path")

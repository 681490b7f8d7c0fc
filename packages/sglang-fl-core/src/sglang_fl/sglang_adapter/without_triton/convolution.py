"""SGLang's functions of the causal convolution, with its signatures, over the object that layer 2 knows."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sglang_fl.sglang_adapter.layers.causal_convolution import arguments_of_prompts, arguments_of_update
from sglang_fl.sglang_adapter.without_triton.kernels import CausalConvolution

__all__ = ["prefill_by", "update_by"]


def prefill_by(convolution: CausalConvolution) -> Callable[..., Tensor]:
    """Return ``causal_conv1d_fn`` as SGLang calls it; what the op lacks is an ``UnsupportedError``."""

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
        states = (conv_states, query_start_loc, cache_indices, has_initial_state)
        y: Tensor = convolution.prefill(x, weight, bias, *arguments_of_prompts(*states, activation, given))
        return y

    return causal_conv1d_fn


def update_by(convolution: CausalConvolution) -> Callable[..., Tensor]:
    """Return ``causal_conv1d_update`` likewise."""

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
        given["cache_seqlens"] = cache_seqlens
        rest = arguments_of_update(x, activation, conv_state_indices, given)
        y: Tensor = convolution.update(x, conv_state, weight, bias, *rest)
        return y

    return causal_conv1d_update

"""The causal convolution of linear attention to ``causal_conv1d_fn`` and ``causal_conv1d_update``.

It is no layer class. Where Triton runs, SGLang's backends for gated delta nets, for Kimi's delta attention
and for Mamba-2 call functions by names of a module. Such a name is replaced once the model is loaded, by what
finds its kernel in the first call; where that is SGLang's own, the name means SGLang's function again, and
nothing stands around it. If another plugin has put a function of its own in one of these places, all names of
that module stay as they are, and one warning says so. Where no Triton kernel can run, the backends convolve
by an object of ours, ``CausalConvolution``, with the arguments of the two ops, and its methods are replaced.

SGLang: ``causal_conv1d_fn(x, weight, bias, *, conv_states, query_start_loc, cache_indices, has_initial_state,
activation, seq_lens_cpu, ...)`` to ``causal_conv1d_fn(x, weight, bias, conv_states, query_start_loc,
cache_indices, has_initial_state, activation)``; ``causal_conv1d_update(x, conv_state, weight, bias,
activation, *, conv_state_indices, ...)`` to ``causal_conv1d_update(x, conv_states, weight, bias, activation,
conv_state_indices)``.

Falls through: drafted tokens with the states between them, calls without indices of states, or with more
arguments by position, which SGLang's functions have in different places, states longer than the taps need,
and whatever else a later release may pass. A name serves all layers, so that the calls of one forward pass
may be enough to give it back to SGLang for good, where all of them are of these. On ``CausalConvolution`` a
call that the kernel refuses is computed by the reference, as the dispatch log says.
"""

from collections.abc import Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from sglang_fl.dispatch.plan import Forward
from sglang_fl.errors import REFUSALS, UnsupportedError
from sglang_fl.ops import OPS, Kernel
from sglang_fl.sglang_adapter.layers.adapter import Adapter, Own, bind_arguments

__all__ = [
    "ADAPTERS",
    "CLASS",
    "METHODS",
    "MODULES",
    "NAMES",
    "arguments_of_prompts",
    "arguments_of_update",
    "is_another_plugins",
    "is_known",
]

CLASS = "sglang_fl.sglang_adapter.without_triton.kernels:CausalConvolution"
#: The methods of the object.
METHODS = (
    Adapter(f"{CLASS}.prefill", OPS["causal_conv1d_fn"], bind_arguments),
    Adapter(f"{CLASS}.update", OPS["causal_conv1d_update"], bind_arguments),
)

_ATTENTION = "sglang.srt.layers.attention"
_MAMBA_2 = f"{_ATTENTION}.hybrid_linear_attn_backend:Mamba2AttnBackend"
#: SGLang's backends of linear attention, and the module by whose names each of them convolves.
MODULES = {
    f"{_ATTENTION}.linear.gdn_backend:GDNAttnBackend": f"{_ATTENTION}.linear.gdn_backend",
    f"{_ATTENTION}.linear.kda_backend:KDAAttnBackend": f"{_ATTENTION}.linear.kda_backend",
    _MAMBA_2: f"{_ATTENTION}.mamba.mamba",
}
#: Where SGLang's functions with the arguments above are: in CUDA, in Triton, and in Triton in 0.5.15.
_SOURCES = (
    f"{_ATTENTION}.mamba.causal_conv1d",
    "sglang.kernels.ops.mamba.causal_conv1d_triton",
    f"{_ATTENTION}.mamba.causal_conv1d_triton",
)
#: How the names of the packages begin from which SGLang itself takes functions for other devices.
_SGLANGS = ("sglang.", "sgl_kernel")

#: What SGLang passes for its own kernels' sake: none of it changes a result.
_FOR_ITS_KERNELS = frozenset(("seq_lens_cpu", "block_table"))
#: What it may pass, and what means the same as leaving it out: padding is -1 in the contract too.
_WITHOUT_EFFECT = {"pad_slot_id": (-1,), "validate_data": (False,)}
#: SGLang has five words for two things.
_ACTIVATIONS = {None: None, False: None, True: "silu", "silu": "silu", "swish": "silu"}


def is_known(function: Any) -> bool:
    """Whether it is a function of SGLang's with the arguments above, and nobody's wrapper around one."""
    is_plain = isinstance(function, FunctionType) and not hasattr(function, "__wrapped__")
    return is_plain and function.__module__ in _SOURCES


def is_another_plugins(function: Any) -> bool:
    """Whether it is no function that SGLang itself has put in the place of one of its own."""
    module = getattr(function, "__module__", None) or ""
    return not module.startswith(_SGLANGS) or hasattr(function, "__wrapped__")


def arguments_of_prompts(
    conv_states: Tensor,
    query_start_loc: Tensor,
    cache_indices: Tensor | None,
    has_initial_state: Tensor | None,
    activation: str | bool | None,
    given: Mapping[str, Any],
) -> tuple[Any, ...]:
    """Return the arguments of the op ``causal_conv1d_fn`` from the fourth on.

    Parameters
    ----------
    conv_states, query_start_loc, cache_indices, activation : as SGLang passes them
    has_initial_state : the same; None: no sequence has a state
    given : what else it passes

    Raises
    ------
    UnsupportedError : the op cannot express it
    """
    _refuse_others("causal_conv1d_fn", given)
    if cache_indices is None:
        raise UnsupportedError("causal_conv1d_fn: no indices of states, which the op needs")
    if has_initial_state is None:
        has_initial_state = torch.zeros_like(cache_indices, dtype=torch.bool)
    return conv_states, query_start_loc, cache_indices, has_initial_state, _activation(activation)


def arguments_of_update(
    x: Tensor,
    activation: str | bool | None,
    conv_state_indices: Tensor | None,
    given: Mapping[str, Any],
) -> tuple[Any, ...]:
    """Return the arguments of the op ``causal_conv1d_update`` from the fifth on.

    Parameters
    ----------
    x, activation, conv_state_indices : as SGLang passes them
    given : what else it passes

    Raises
    ------
    UnsupportedError : the op cannot express it
    """
    _refuse_others("causal_conv1d_update", given)
    if x.dim() != 2:
        raise UnsupportedError(
            f"causal_conv1d_update: drafted tokens, {tuple(x.shape)}, which the op does not have"
        )
    if conv_state_indices is None:
        raise UnsupportedError("causal_conv1d_update: no indices of states, which the op needs")
    return _activation(activation), conv_state_indices


def _activation(given: str | bool | None) -> str | None:
    """Return what the contract calls an activation."""
    if given not in _ACTIVATIONS:
        raise UnsupportedError(f"the activation {given!r}, which the op does not have")
    return _ACTIVATIONS[given]


def _refuse_others(function: str, given: Mapping[str, Any]) -> None:
    """Raise ``UnsupportedError`` for an argument that the ops do not have and that changes the result."""
    for name, value in given.items():
        has_effect = value is not None and name not in _FOR_ITS_KERNELS
        if has_effect and value not in _WITHOUT_EFFECT.get(name, ()):
            raise UnsupportedError(f"{function} with {name}, which the op does not have")


def _refuse_places(function: str, more: tuple[Any, ...]) -> None:
    """Raise ``UnsupportedError`` for arguments by position, which SGLang's functions have in other places."""
    if more:
        raise UnsupportedError(f"{function} with arguments by position, whose places differ")


def bind_prompts(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return ``causal_conv1d_fn``."""

    def causal_conv1d_fn(
        layer: Any,
        x: Any,
        weight: Any,
        bias: Any = None,
        *more: Any,
        conv_states: Any = None,
        query_start_loc: Any = None,
        cache_indices: Any = None,
        has_initial_state: Any = None,
        activation: Any = "silu",
        **given: Any,
    ) -> Any:
        states = (conv_states, query_start_loc, cache_indices, has_initial_state)
        try:
            _refuse_places("causal_conv1d_fn", more)
            return kernel(x, weight, bias, *arguments_of_prompts(*states, activation, given))
        except REFUSALS as refusal:
            own.because(refusal)
        named = {
            "conv_states": conv_states,
            "query_start_loc": query_start_loc,
            "cache_indices": cache_indices,
            "has_initial_state": has_initial_state,
            "activation": activation,
        }
        if more:  # some of these stand in their places
            named = {name: value for name, value in named.items() if not (value is None or value == "silu")}
        return own(layer, x, weight, bias, *more, **named, **given)

    return causal_conv1d_fn


def bind_update(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return ``causal_conv1d_update``."""

    def causal_conv1d_update(
        layer: Any,
        x: Any,
        conv_state: Any,
        weight: Any,
        bias: Any = None,
        activation: Any = None,
        *more: Any,
        conv_state_indices: Any = None,
        **given: Any,
    ) -> Any:
        try:
            _refuse_places("causal_conv1d_update", more)
            rest = arguments_of_update(x, activation, conv_state_indices, given)
            return kernel(x, conv_state, weight, bias, *rest)
        except REFUSALS as refusal:
            own.because(refusal)
        indices = {} if more else {"conv_state_indices": conv_state_indices}
        return own(layer, x, conv_state, weight, bias, activation, *more, **indices, **given)

    return causal_conv1d_update


def _adapters(backend: str) -> tuple[Adapter, ...]:
    """Return one for each name; for Mamba-2 SGLang chooses between CUDA's functions and Triton's."""
    endings = ("", "_triton") if backend == _MAMBA_2 else ("",)
    binds = {"causal_conv1d_fn": bind_prompts, "causal_conv1d_update": bind_update}
    return tuple(
        Adapter(f"{backend}.{op}{ending}", OPS[op], bind) for op, bind in binds.items() for ending in endings
    )


#: By the backend: what its module's names become.
NAMES = {backend: _adapters(backend) for backend in MODULES}

ADAPTERS = (*METHODS, *(adapter for adapters in NAMES.values() for adapter in adapters))

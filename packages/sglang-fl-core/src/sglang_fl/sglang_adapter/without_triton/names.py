"""Puts plain PyTorch in the place of SGLang's Triton kernels beside attention, where none can run.

SGLang asks no platform about them. Its modules look the kernels up by name in each call, so the names are
given other functions, once a model is loaded and before it runs. On a platform that runs Triton nothing is
replaced.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from packaging.version import Version

from sglang_fl.errors import SettingsError
from sglang_fl.platform import NoTriton
from sglang_fl.sglang_adapter.methods import PLAIN_KERNELS, TARGET
from sglang_fl.sglang_adapter.releases import WITHOUT_TRITON, is_supported
from sglang_fl.sglang_adapter.replaced import Functions, give, give_all
from sglang_fl.sglang_adapter.without_triton import gated_delta_net, gated_norm, gates
from sglang_fl.sglang_adapter.without_triton.convolution import prefill_by, update_by
from sglang_fl.sglang_adapter.without_triton.kernels import CausalConvolution, StateSpace
from sglang_fl.sglang_adapter.without_triton.state_space import scan_by, state_update_by

__all__ = ["install", "replace"]

_ATTENTION = "sglang.srt.layers.attention"
_MIXER = f"{_ATTENTION}.mamba.mamba"
_KERNELS = "sglang.kernels.ops.attention"

#: The functions that take the place of those of the same name in a module of SGLang, for all models.
_OF_ALL_MODELS: Functions = {
    "sglang.srt.models.qwen2_moe": (gates.fused_gate_sigmoid_mul, gates.fused_gate_sigmoid_mul_add),
    "sglang.srt.models.qwen3_5": (
        gates.fused_sigmoid_mul,
        gated_delta_net.fused_qkvzba_split_reshape_cat_contiguous,
    ),
    "sglang.srt.models.qwen3_next": (gated_delta_net.fused_qkvzba_split_reshape_cat,),
    f"{_KERNELS}.fla.fused_norm_gate": (gated_norm.rms_norm_gated,),
    f"{_KERNELS}.fla.layernorm_gated": (gated_norm.layernorm_fn,),
}
#: For linear attention, beside those that call an object which layer 2 knows.
_OF_LINEAR_ATTENTION: Functions = {
    f"{_ATTENTION}.linear.gdn_backend": (gated_delta_net.fused_gdn_gating,),
    f"{_ATTENTION}.linear.kernels.gdn_triton": (
        gated_delta_net.chunk_gated_delta_rule,
        gated_delta_net.fused_recurrent_gated_delta_rule_packed_decode,
        gated_delta_net.fused_sigmoid_gating_delta_rule_update,
    ),
}
#: SGLang's backends of linear attention that need no other kernel, and what models have them.
_BACKENDS = {
    f"{_ATTENTION}.linear.gdn_backend:GDNAttnBackend": "the gated delta net of Qwen3-Next and Qwen3.5",
    f"{_ATTENTION}.hybrid_linear_attn_backend:Mamba2AttnBackend": "Mamba-2",
}
#: Where SGLang decides how the states of prefixes are kept, if the user left it open.
_KEEPS_MORE_STATES = "sglang.srt.arg_groups.overrides.supports_mamba_cache_extra_buffer"


def install(version: Version, guard: Callable[[], AbstractContextManager[None]]) -> None:
    """Have the names replaced as soon as SGLang has built the attention backend of a model.

    Parameters
    ----------
    version : of SGLang; one that is not supported is left alone
    guard : is entered where they are replaced, in a process that runs a model
    """
    from sglang.srt import platforms
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    if not is_supported(version) or not isinstance(platforms.current_platform, NoTriton):
        return

    def built(backend: Any, *given: Any) -> None:
        with guard():
            replace(backend, version)

    HookRegistry.register(TARGET, built, HookType.AFTER)
    if version in WITHOUT_TRITON:
        HookRegistry.register(_KEEPS_MORE_STATES, _asked_of_the_platform, HookType.AFTER)


def _asked_of_the_platform(supports: bool, *given: Any) -> bool:
    """Say whether SGLang may keep states beside those in use, as its check of the result will.

    SGLang 0.5.23 chooses that by the model alone, and then refuses it because of the platform.
    """
    from sglang.srt import platforms

    return supports and bool(platforms.current_platform.support_mamba_cache_extra_buffer())


def replace(backend: Any, version: Version) -> None:
    """Replace the names for a model.

    Parameters
    ----------
    backend : the model's attention backend; one of linear attention gets the objects by which it computes
        from now on, where layer 2 looks for them
    version : of SGLang

    Raises
    ------
    SettingsError : the model's linear attention has no plain PyTorch path, or not with this SGLang
    """
    linear = getattr(backend, "linear_attn_backend", None)
    if linear is not None:
        _refuse(linear, version)
        _put(_OF_LINEAR_ATTENTION)
        convolution, space = CausalConvolution(), StateSpace()
        setattr(linear, PLAIN_KERNELS, (convolution, space))
        _convolve_by(convolution)
        give(_MIXER, scan_by(space), state_update_by(space))
    if version in WITHOUT_TRITON:
        _put(_OF_ALL_MODELS)


def _refuse(linear: Any, version: Version) -> None:
    kind = type(linear)
    reason = f"{kind.__name__}: this model's linear attention launches Triton kernels, and none can run here"
    if f"{kind.__module__}:{kind.__qualname__}" not in _BACKENDS:
        raise SettingsError(f"{reason}. Valid: {', '.join(_BACKENDS.values())}.")
    if version not in WITHOUT_TRITON:
        raise SettingsError(
            f"{reason}. Plain PyTorch takes their place with SGLang {WITHOUT_TRITON}, not with {version}."
        )


def _convolve_by(convolution: CausalConvolution) -> None:
    """Replace the convolution; in the mixer of Mamba-2 its names are not even bound on our platforms."""
    prefill, update = prefill_by(convolution), update_by(convolution)
    give(f"{_ATTENTION}.linear.gdn_backend", prefill, update)
    for suffix in ("", "_triton"):
        setattr(sys.modules[_MIXER], f"causal_conv1d_fn{suffix}", prefill)
        setattr(sys.modules[_MIXER], f"causal_conv1d_update{suffix}", update)


def _put(functions: Functions) -> None:
    """Give names of those modules that are loaded other functions."""
    give_all({module: others for module, others in functions.items() if module in sys.modules})

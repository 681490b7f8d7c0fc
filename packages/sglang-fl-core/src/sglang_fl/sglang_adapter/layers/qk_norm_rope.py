"""``Qwen3Attention``, ``Qwen3MoeAttention`` and ``Glm4MoeAttention`` to the op ``qk_norm_rope``.

They are no fused layers: in one method each norms query and key and rotates them, by layers of its own, and
hands them to attention. That method of the object is replaced, once the model is loaded.

SGLang: ``Qwen3Attention.forward(positions, hidden_states, forward_batch)``,
``Qwen3MoeAttention.apply_qk_norm_rope(qkv, positions, forward_batch)``,
``Glm4MoeAttention.forward_prepare(positions, hidden_states, forward_batch)``. Contract:
``qk_norm_rope(query, key, q_weight, k_weight, eps, positions, cos_sin_cache, head_size, is_neox_style, *,
add_unit_offset=False, value=None, k_buffer=None, v_buffer=None, cache_loc=None)``. The KV cache is written
too where SGLang lets a rotation write it: on CUDA, in bfloat16, without scales.

Falls through: calls while ``torch.compile`` traces, layers whose rotation has rows picked beforehand
(``sin_cos_cache``), a rotation by several axes or of a class of its own, norms that are no plain
``RMSNorm``, parts that somebody listens to or has given a forward of their own, and layers that run ROCm's
fused kernels.
"""

from collections.abc import Callable
from typing import Any

import torch

from sglang_fl.dispatch.plan import Forward
from sglang_fl.errors import REFUSALS, UnsupportedError
from sglang_fl.ops import KV_CACHE, OPS, Kernel, lacking
from sglang_fl.sglang_adapter.layers import rms_norm, rotary_embedding
from sglang_fl.sglang_adapter.layers.adapter import (
    Adapter,
    Own,
    buffer,
    by_layer_class,
    covering,
    parameter,
    submodule,
)

__all__ = ["ADAPTERS"]

_NORM = "sglang.srt.layers.layernorm:RMSNorm"
_ROTATIONS = by_layer_class(rotary_embedding.ADAPTERS)

#: ``turn(layer, positions, qkv, forward_batch, may_write=True)`` returns query, key and value, and whether
#: the last two have been written into the KV cache.
Turn = Callable[..., tuple[Any, Any, Any, bool]]


def _turn_by(layer: Any, kernel: Kernel, why_not: Callable[[Any], str | None]) -> Turn:
    """Return how the heads of such a layer are turned; its norms and its rotation are read at each call.

    ``why_not`` says of a layer why it cannot be; it is asked again where they have become others.
    """
    known = _sorts(*_parts(layer))
    cache_options = _cache_options(layer, kernel)

    def turn(layer: Any, positions: Any, qkv: Any, forward_batch: Any, may_write: bool = True) -> Any:
        nonlocal known
        q_norm, k_norm, rotation = _parts(layer)
        if "sin_cos_cache" in rotation.__dict__:
            raise UnsupportedError("its rotation has rows picked beforehand")
        sorts = _sorts(q_norm, k_norm, rotation)
        if sorts != known:
            reason = why_not(layer)
            if reason is not None:
                raise UnsupportedError(reason)
            known = sorts
        q, k, v = qkv.split([layer.q_size, layer.kv_size, layer.kv_size], dim=-1)
        options = cache_options(layer, v, forward_batch) if may_write else {}
        weights = parameter(q_norm, "weight"), parameter(k_norm, "weight")
        facts = buffer(rotation, "cos_sin_cache"), rotation.head_size, rotation.is_neox_style
        q, k = kernel(q, k, *weights, q_norm.variance_epsilon, positions, *facts, **options)
        return q, k, v, bool(options)

    return turn


def _parts(layer: Any) -> tuple[Any, Any, Any]:
    return submodule(layer, "q_norm"), submodule(layer, "k_norm"), submodule(layer, "rotary_emb")


def _sorts(q_norm: Any, k_norm: Any, rotation: Any) -> tuple[Any, ...]:
    """Return all that ``why_not`` looks at in the parts of a layer."""
    called = _must_be_called(q_norm) or _must_be_called(k_norm) or _must_be_called(rotation)
    classes = type(q_norm), type(k_norm), type(rotation)
    if classes[0] is not classes[1]:
        return classes
    epsilons = q_norm.variance_epsilon, k_norm.variance_epsilon
    return *classes, called, *epsilons, rms_norm.style(q_norm), rms_norm.style(k_norm)


def _must_be_called(part: Any) -> bool:
    """Whether a part of the layer has hooks, or a forward that was given to it alone."""
    held = part.__dict__
    return bool(held["_forward_hooks"] or held["_forward_pre_hooks"]) or "forward" in held


def _cache_options(layer: Any, kernel: Kernel) -> Callable[[Any, Any, Any], dict[str, Any]]:
    """Return what finds the options by which a call writes the KV cache; none where attention has to."""
    from sglang.srt.models import utils

    is_able = not lacking(kernel, KV_CACHE)

    def options(layer: Any, v: Any, forward_batch: Any) -> dict[str, Any]:
        attention = submodule(layer, "attn")
        if not is_able or attention.k_scale is not None or attention.v_scale is not None:
            return {}
        if not utils.enable_fused_set_kv_buffer(forward_batch):
            return {}
        argument = utils.create_fused_set_kv_buffer_arg(value=v, layer=attention, forward_batch=forward_batch)
        found = rotary_embedding.cache_options(argument)
        return found if found and found["k_buffer"].dtype == v.dtype else {}

    return options


def bind_qwen3(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return ``forward``, in which attention is told whether the KV cache has been written."""
    turn = _turn_by(layer, kernel, why_not_qwen3)

    def forward(layer: Any, positions: Any, hidden_states: Any, forward_batch: Any) -> Any:
        if torch.compiler.is_compiling():
            return own(layer, positions, hidden_states, forward_batch)
        qkv, _ = layer.qkv_proj(hidden_states)
        try:
            q, k, v, is_written = turn(layer, positions, qkv, forward_batch)
        except REFUSALS as refusal:
            own.because(refusal)
            return own(layer, positions, hidden_states, forward_batch)
        attended = layer.attn(q, k, v, forward_batch, save_kv_cache=not is_written)
        output, _ = layer.o_proj(attended)
        return output

    return forward


def bind_qwen3_moe(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return ``apply_qk_norm_rope``, after which SGLang itself knows that the KV cache has been written."""
    turn = _turn_by(layer, kernel, why_not)

    def apply_qk_norm_rope(layer: Any, qkv: Any, positions: Any, forward_batch: Any) -> Any:
        if torch.compiler.is_compiling():
            return own(layer, qkv, positions, forward_batch)
        may_write = layer.compatible_with_fused_kv_buffer
        try:
            q, k, v, is_written = turn(layer, positions, qkv, forward_batch, may_write)
        except REFUSALS as refusal:
            own.because(refusal)
            return own(layer, qkv, positions, forward_batch)
        # By this SGLang's forward_core saves keys and values that are not in the cache yet. It is set only
        # where it changes, because to set an attribute of a module takes 2.8 µs, to read it 0.1.
        must_save = not is_written
        if layer._used_fused_qk_norm_rope_last_call is not must_save:
            layer._used_fused_qk_norm_rope_last_call = must_save
        return q, k, v

    return apply_qk_norm_rope


def bind_glm4_moe(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return ``forward_prepare``; what it returns last are the arguments of the call of attention."""
    turn = _turn_by(layer, kernel, why_not_glm4)

    def forward_prepare(layer: Any, positions: Any, hidden_states: Any, forward_batch: Any) -> Any:
        is_quantised = isinstance(hidden_states, tuple)
        if torch.compiler.is_compiling() or not len(hidden_states[0] if is_quantised else hidden_states):
            return own(layer, positions, hidden_states, forward_batch)
        qkv, _ = layer.qkv_proj(hidden_states)
        try:
            q, k, v, is_written = turn(layer, positions, qkv, forward_batch)
        except REFUSALS as refusal:
            own.because(refusal)
            return own(layer, positions, hidden_states, forward_batch)
        return None, forward_batch, (q, k, v, forward_batch, not is_written)

    return forward_prepare


def why_not(layer: Any) -> str | None:
    """Say what of a layer the contract cannot express."""
    norms = (layer.q_norm, layer.k_norm)
    for norm in norms:
        if f"{type(norm).__module__}:{type(norm).__qualname__}" != _NORM:
            return f"its norm is {type(norm).__name__}"
        reason = rms_norm.why_not(norm)
        if reason or rms_norm.options(norm):
            return reason or f"its norms have {', '.join(rms_norm.options(norm))}"
    if any(map(_must_be_called, _parts(layer))):
        return "a part of it has hooks, or a forward of its own"
    if norms[0].variance_epsilon != norms[1].variance_epsilon:
        return "its norms have two epsilons"
    found = covering(type(layer.rotary_emb), _ROTATIONS)
    if not found or found[0].layer_class != rotary_embedding.ROTATION:
        return f"its rotation is {type(layer.rotary_emb).__name__}"
    return None


def why_not_qwen3(layer: Any) -> str | None:
    """Say what of a layer the contract cannot express, or whether it runs ROCm's fused kernels."""
    if getattr(layer, "use_fused_qk_norm_mrope", False) or getattr(layer, "use_fused_qk_norm_rope", False):
        return "SGLang runs a fused kernel of ROCm's library"
    return why_not(layer)


def why_not_glm4(layer: Any) -> str | None:
    """Say what of a layer the contract cannot express."""
    return why_not(layer) if layer.use_qk_norm else "it has no norms of query and key"


_OP = OPS["qk_norm_rope"]

ADAPTERS = (
    Adapter("sglang.srt.models.qwen3:Qwen3Attention.forward", _OP, bind_qwen3, why_not_qwen3),
    Adapter("sglang.srt.models.qwen3_moe:Qwen3MoeAttention.apply_qk_norm_rope", _OP, bind_qwen3_moe, why_not),
    Adapter("sglang.srt.models.glm4_moe:Glm4MoeAttention.forward_prepare", _OP, bind_glm4_moe, why_not_glm4),
)

"""The kernels of the gated delta rule (Qwen3-Next) to its three ops.

They are no layer classes: SGLang's attention backend holds an object ``TritonGDNKernel`` and calls its
methods. Each method of the object is replaced by one that finds its kernel in its first call.

SGLang: ``extend(q, k, v, g, beta, *, ssm_states, cache_indices, query_start_loc, ...)`` to
``chunk_gated_delta_rule``; ``decode(q, k, v, a, b, *, A_log, dt_bias, ssm_states, cache_indices,
query_start_loc, ...)`` to ``fused_sigmoid_gating_delta_rule_update``; ``packed_decode(mixed_qkv, a, b, *,
A_log, dt_bias, scale, ssm_states, cache_indices, ...)`` to
``fused_recurrent_gated_delta_rule_packed_decode``.

Falls through: scoring of several items at once (``inplace_update=False``) and states that are replayed
(``replayssm_*``). Left to SGLang: ``target_verify``, the check of drafted tokens in speculative decoding, and
the other kernels that ``--linear-attn-backend`` selects.
"""

from typing import Any

from sglang_fl.dispatch.plan import Forward
from sglang_fl.errors import REFUSALS
from sglang_fl.ops import OPS, Kernel
from sglang_fl.sglang_adapter.layers.adapter import Adapter, Own

__all__ = ["ADAPTERS", "CLASS"]

CLASS = "sglang.srt.layers.attention.linear.kernels.gdn_triton:TritonGDNKernel"


def bind_extend(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return ``extend``."""

    def extend(
        layer: Any,
        q: Any,
        k: Any,
        v: Any,
        g: Any,
        beta: Any,
        *,
        ssm_states: Any,
        cache_indices: Any,
        query_start_loc: Any,
        inplace_update: bool = True,
        **given: Any,
    ) -> Any:
        states = {
            "ssm_states": ssm_states,
            "cache_indices": cache_indices,
            "query_start_loc": query_start_loc,
        }
        if not inplace_update:
            return own(layer, q, k, v, g, beta, **states, inplace_update=False, **given)
        try:
            o, h = kernel(q, k, v, g, beta, *states.values(), k.shape[-1] ** -0.5)
            return o, None, h
        except REFUSALS as refusal:
            own.because(refusal)
        return own(layer, q, k, v, g, beta, **states, **given)

    return extend


def bind_decode(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return ``decode``."""

    def decode(
        layer: Any,
        q: Any,
        k: Any,
        v: Any,
        a: Any,
        b: Any,
        *,
        A_log: Any,
        dt_bias: Any,
        ssm_states: Any,
        cache_indices: Any,
        query_start_loc: Any,
        **given: Any,
    ) -> Any:
        states = {
            "ssm_states": ssm_states,
            "cache_indices": cache_indices,
            "query_start_loc": query_start_loc,
        }
        try:
            return kernel(A_log, a, dt_bias, q, k, v, b, *states.values(), k.shape[-1] ** -0.5)
        except REFUSALS as refusal:
            own.because(refusal)
        return own(layer, q, k, v, a, b, A_log=A_log, dt_bias=dt_bias, **states, **given)

    return decode


def bind_packed_decode(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return ``packed_decode``."""

    def packed_decode(
        layer: Any,
        mixed_qkv: Any,
        a: Any,
        b: Any,
        *,
        A_log: Any,
        dt_bias: Any,
        scale: float,
        ssm_states: Any,
        cache_indices: Any,
        **given: Any,
    ) -> Any:
        try:
            if given.get("replayssm_d") is None:
                o: Any = kernel(mixed_qkv, a, b, A_log, dt_bias, ssm_states, cache_indices, scale)
                return o.unsqueeze(0)
        except REFUSALS as refusal:
            own.because(refusal)
        parameters = {"A_log": A_log, "dt_bias": dt_bias, "scale": scale}
        states = {"ssm_states": ssm_states, "cache_indices": cache_indices}
        return own(layer, mixed_qkv, a, b, **parameters, **states, **given)

    return packed_decode


ADAPTERS = (
    Adapter(f"{CLASS}.extend", OPS["chunk_gated_delta_rule"], bind_extend),
    Adapter(f"{CLASS}.decode", OPS["fused_sigmoid_gating_delta_rule_update"], bind_decode),
    Adapter(
        f"{CLASS}.packed_decode", OPS["fused_recurrent_gated_delta_rule_packed_decode"], bind_packed_decode
    ),
)

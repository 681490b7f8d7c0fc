"""The catalogue of ops: one line for each. An op that is not listed here does not exist."""

from collections.abc import Mapping
from types import MappingProxyType

from sglang_fl.ops import (
    chunk_gated_delta_rule,
    fused_moe,
    fused_recurrent_gated_delta_rule_packed_decode,
    fused_sigmoid_gating_delta_rule_update,
    gelu_and_mul,
    gemma_rms_norm,
    layer_norm,
    mrope,
    new_gelu,
    quick_gelu,
    relu2,
    rms_norm,
    rotary_embedding,
    silu_and_mul,
    situ_and_mul,
    topk_sigmoid,
    topk_softmax,
)
from sglang_fl.ops.op import Bound, Case, Kernel, Op, Outputs, lacking, with_options
from sglang_fl.ops.overlap import shares_memory, unshared
from sglang_fl.ops.routing import renormalized

__all__ = [
    "OPS",
    "Bound",
    "Case",
    "Kernel",
    "Op",
    "Outputs",
    "lacking",
    "renormalized",
    "shares_memory",
    "unshared",
    "with_options",
]

#: Read-only: what all packages share, none may change.
OPS: Mapping[str, Op] = MappingProxyType(
    {
        op.name: op
        for op in (
            silu_and_mul.OP,
            gelu_and_mul.OP,
            situ_and_mul.OP,
            new_gelu.OP,
            quick_gelu.OP,
            relu2.OP,
            rms_norm.OP,
            gemma_rms_norm.OP,
            layer_norm.OP,
            rotary_embedding.OP,
            mrope.OP,
            topk_softmax.OP,
            topk_sigmoid.OP,
            fused_moe.OP,
            chunk_gated_delta_rule.OP,
            fused_recurrent_gated_delta_rule_packed_decode.OP,
            fused_sigmoid_gating_delta_rule_update.OP,
        )
    }
)

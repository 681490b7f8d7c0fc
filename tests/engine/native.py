"""SGLang's own PyTorch path of each op, called with the arguments of the contract."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from packaging.version import Version
from sglang.srt.layers import activation, layernorm
from sglang.srt.layers.moe import MoeRunnerConfig, topk
from sglang.srt.layers.moe.fused_moe_native import moe_forward_native
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang.srt.layers.rotary_embedding.mrope import MRotaryEmbedding
from torch import Tensor

from tests.engine.release import RELEASE

__all__ = ["NATIVE", "native"]

Arguments = dict[str, Any]
#: A mistake that 0.5.20 has and 0.5.23 has not: without renormalising, grouped routing drops the factor,
#: so that there it is what remains to be done.
LOSES_FACTOR = Version("0.5.23") > RELEASE

POINTWISE = {
    "silu_and_mul": activation.SiluAndMul,
    "new_gelu": activation.NewGELU,
    "quick_gelu": activation.QuickGELU,
    "relu2": activation.ReLU2,
}


def native(op: str, arguments: Arguments) -> tuple[Tensor, ...] | None:
    """Return what SGLang's path returns, or None where it cannot do what these arguments ask for."""
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        result = NATIVE[op](arguments)
    return (result,) if isinstance(result, Tensor) else result


def _pointwise(op: str) -> Callable[[Arguments], Any]:
    return lambda arguments: POINTWISE[op]().forward_native(arguments["x"])


def _gelu_and_mul(arguments: Arguments) -> Any:
    return activation.GeluAndMul(arguments["approximate"]).forward_native(arguments["x"])


def _situ_and_mul(arguments: Arguments) -> Any:
    layer = activation.SituAndMul(arguments["beta"], arguments["linear_beta"])
    return layer.forward_native(arguments["x"])


def _rms_norm(arguments: Arguments) -> Any:
    width, weight = arguments["x"].shape[-1], arguments["weight"]
    options = {
        name: arguments[name] for name in ("cast_x_before_out_mul", "fp32_residual") if name in arguments
    }
    size = arguments.get("variance_size_override")
    layer = layernorm.RMSNorm(
        width, arguments["eps"], var_hidden_size=size, weight_dtype=weight.dtype, **options
    )
    return _normed(layer, arguments)


def _gemma_rms_norm(arguments: Arguments) -> Any:
    return _normed(layernorm.GemmaRMSNorm(arguments["x"].shape[-1], arguments["eps"]), arguments)


def _normed(layer: Any, arguments: Arguments) -> Any:
    layer.weight.data = arguments["weight"]
    # It adds to what it is given where that is float32.
    copies = (arguments.get(name) for name in ("x", "residual", "post_residual_addition"))
    return layer.forward_native(*(copy if copy is None else copy.clone() for copy in copies))


def _layer_norm(arguments: Arguments) -> Any:
    width, weight, bias = arguments["x"].shape[-1], arguments["weight"], arguments["bias"]
    if weight is None and bias is not None:
        return None
    layer = layernorm.LayerNorm(
        width, arguments["eps"], elementwise_affine=weight is not None, bias=bias is not None
    )
    if weight is not None:
        layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer.forward_native(arguments["x"])


def _rotary_embedding(arguments: Arguments) -> Any:
    if not arguments["positions"].numel():
        return None  # it cannot view a query without tokens
    rotary_dim = arguments["cos_sin_cache"].shape[-1]
    facts = (arguments["head_size"], rotary_dim, 40, 100, arguments["is_neox_style"], torch.float32)
    layer = RotaryEmbedding(*facts)
    layer.cos_sin_cache = arguments["cos_sin_cache"]
    return layer.forward_native(*(arguments.get(k) for k in ("positions", "query", "key", "offsets")))


def _mrope(arguments: Arguments) -> Any:
    # Its forward_native takes no notice of GLM's order of lanes, which its CUDA kernel follows.
    if not arguments["positions"].numel() or "mrope_interleaved_glm" in arguments:
        return None
    rotary_dim = arguments["cos_sin_cache"].shape[-1]
    layer = MRotaryEmbedding(
        *(arguments["head_size"], rotary_dim, 40, 100, arguments["is_neox_style"], torch.float32),
        mrope_section=list(arguments["mrope_section"]),
        mrope_interleaved=arguments["mrope_interleaved"],
    )
    layer.cos_sin_cache = arguments["cos_sin_cache"]
    return layer.forward_native(arguments["positions"], arguments["query"], arguments["key"])


def _routing(scores: str) -> Callable[[Arguments], Any]:
    def route(arguments: Arguments) -> Any:
        logits, bias = arguments["router_logits"], arguments.get("correction_bias")
        given = (logits, logits, *((bias,) if bias is not None else ()), arguments["top_k"])
        given = (*given, arguments["renormalize"])
        factor = arguments["routed_scaling_factor"]
        if not len(logits):
            return None  # it cannot form groups of no tokens
        if "num_expert_group" not in arguments:
            # The order of these two differs from that of the grouped ones.
            plain = (logits, logits, arguments["top_k"], arguments["renormalize"], bias, scores)
            weights, ids = topk.fused_topk_torch_native(*plain)
            return weights.float() * factor, ids.to(torch.int32)
        groups = {
            "num_expert_group": arguments["num_expert_group"],
            "topk_group": arguments["topk_group"],
            "routed_scaling_factor": factor,
            "apply_routed_scaling_factor_on_output": True,
        }
        if bias is None:
            weights, ids = topk.grouped_topk_gpu(*given, **groups, scoring_func=scores)
        elif scores == "sigmoid":
            weights, ids = topk.biased_grouped_topk_impl(*given, **groups)
        else:
            return None
        return weights * (factor if LOSES_FACTOR and not arguments["renormalize"] else 1), ids

    return route


def _fused_moe(arguments: Arguments) -> Any:
    ids = arguments["topk_ids"]
    if arguments.get("apply_router_weight_on_input") or bool((ids < 0).any()) or not ids.numel():
        return None
    w13_weight, w2_weight = arguments["w13_weight"], arguments["w2_weight"]
    layer = SimpleNamespace(w13_weight=w13_weight, w2_weight=w2_weight, num_experts=len(w13_weight))
    chosen = topk.StandardTopKOutput(arguments["topk_weights"], ids, None)
    result = moe_forward_native(layer, arguments["hidden_states"], chosen, MoeRunnerConfig(activation="silu"))
    return result * arguments.get("routed_scaling_factor", 1.0)


#: The kernels of the gated delta rule have no PyTorch path in SGLang.
NATIVE: dict[str, Callable[[Arguments], Any]] = {
    **{op: _pointwise(op) for op in POINTWISE},
    "gelu_and_mul": _gelu_and_mul,
    "situ_and_mul": _situ_and_mul,
    "rms_norm": _rms_norm,
    "gemma_rms_norm": _gemma_rms_norm,
    "layer_norm": _layer_norm,
    "rotary_embedding": _rotary_embedding,
    "mrope": _mrope,
    "topk_softmax": _routing("softmax"),
    "topk_sigmoid": _routing("sigmoid"),
    "fused_moe": _fused_moe,
}

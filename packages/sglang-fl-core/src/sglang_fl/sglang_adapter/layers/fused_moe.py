"""``UnquantizedFusedMoEMethod`` to the op ``fused_moe``.

SGLang: ``forward(layer, dispatch_output)`` returns a ``CombineInput``. Contract: ``fused_moe(hidden_states,
w13_weight, w2_weight, topk_weights, topk_ids, *, apply_router_weight_on_input=False,
routed_scaling_factor=1.0, w13_bias=None, w2_bias=None, gemm1_alpha=None, gemm1_limit=None)``.

Falls through: other activations than a gated SiLU and that of GPT-OSS, results that are not combined, weights
that SGLang has packed or permuted for a kernel of its own (``--moe-runner-backend``), and calls whose tokens
or routing come in another form than the standard one.
"""

from typing import Any

from sglang_fl.dispatch.plan import Forward
from sglang_fl.errors import REFUSALS, UnsupportedError
from sglang_fl.ops import OPS, Kernel, with_options
from sglang_fl.sglang_adapter.layers.adapter import Adapter, Own, parameter

__all__ = ["ADAPTERS"]

#: The options that are a layer's parameters, and their names there.
_BIASES = {"w13_bias": "w13_weight_bias", "w2_bias": "w2_weight_bias"}
#: What of SGLang's configuration says what is computed.
_STYLE = (
    *("activation", "is_gated", "no_combine", "apply_router_weight_on_input", "routed_scaling_factor"),
    *("gemm1_alpha", "gemm1_clamp_limit", "gate_up_interleaved", "swiglu_limit"),
)
#: What says on SGLang's method that weights are packed or permuted for a kernel of its own. They may become
#: so whenever weights are loaded.
_PACKED = (
    *("use_triton_kernels", "use_flashinfer_cutlass", "use_flashinfer_trtllm_moe", "use_deep_gemm"),
    *("w13_swiglu_interleaved", "_aiter_runner"),
)


def bind(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return a forward that reads the experts' weights at each call; they may be replaced meanwhile.

    SGLang's layer class is here a quantisation method, which is given the experts in each call.
    """
    from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput, StandardDispatchOutput
    from sglang.srt.layers.moe.topk import StandardTopKOutput

    known, run = _facts(layer), with_options(kernel, _options(layer, own))

    def forward(method: Any, layer: Any, dispatch_output: Any) -> Any:
        nonlocal known, run
        # Other forms, such as the one on Ascend NPUs, have sorted the rows by expert already.
        is_standard = (
            type(dispatch_output) is StandardDispatchOutput
            and type(dispatch_output.topk_output) is StandardTopKOutput
            and dispatch_output.hidden_states_scale is None
            and not vars(layer).get("use_intel_amx_backend", False)
        )
        try:
            if is_standard:
                facts = _facts(method)
                if facts != known:
                    reason = why_not(method)
                    if reason is not None:
                        raise UnsupportedError(reason)
                    known, run = facts, with_options(kernel, _options(method, own))
                hidden, topk = dispatch_output.hidden_states, dispatch_output.topk_output
                weights = parameter(layer, "w13_weight"), parameter(layer, "w2_weight")
                biases = _BIASES.items() if method.with_bias else ()
                added = {option: parameter(layer, name) for option, name in biases}
                result = run(hidden, *weights, topk.topk_weights, topk.topk_ids, **added)
                return StandardCombineInput(hidden_states=result)
        except REFUSALS as refusal:
            own.because(refusal)
        return own(method, layer=layer, dispatch_output=dispatch_output)

    return forward


def _facts(method: Any) -> tuple[Any, ...]:
    """Return all that ``_options`` and ``why_not`` look at."""
    of_config, of_method = vars(method.moe_runner_config).get, vars(method).get
    return (*map(of_config, _STYLE), *map(of_method, _PACKED), method.with_bias)


def _options(layer: Any, own: Own) -> dict[str, Any]:
    """Return the options of the contract that these experts need; biases are read at each call."""
    config = layer.moe_runner_config
    options: dict[str, Any] = dict.fromkeys(_BIASES) if layer.with_bias else {}
    if config.gemm1_alpha is not None:
        options |= {"gemm1_alpha": config.gemm1_alpha, "gemm1_limit": config.gemm1_clamp_limit}
    if config.apply_router_weight_on_input:
        options["apply_router_weight_on_input"] = True
    # Where SGLang runs its PyTorch path the models multiply by the factor, elsewhere its runner does.
    if not own.path.is_pytorch and config.routed_scaling_factor not in (None, 1.0):
        options["routed_scaling_factor"] = config.routed_scaling_factor
    return options


def why_not(layer: Any) -> str | None:
    """Say what of these experts the contract cannot express."""
    config = layer.moe_runner_config
    alpha, limit = config.gemm1_alpha, config.gemm1_clamp_limit
    of_gpt_oss = alpha is not None and limit is not None and getattr(config, "gate_up_interleaved", True)
    reasons = {
        f"activation={config.activation!r}": config.activation != "silu" or not config.is_gated,
        f"gemm1_alpha={alpha}, gemm1_clamp_limit={limit}": not of_gpt_oss and (alpha, limit) != (None, None),
        "swiglu_limit": getattr(config, "swiglu_limit", None) is not None,
        "no_combine": config.no_combine,
        "weights packed for another kernel": _is_packed(layer),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _is_packed(layer: Any) -> bool:
    return any(getattr(layer, name, None) for name in _PACKED)


ADAPTERS = (
    Adapter(
        "sglang.srt.layers.quantization.unquant:UnquantizedFusedMoEMethod", OPS["fused_moe"], bind, why_not
    ),
)

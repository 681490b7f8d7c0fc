"""``UnquantizedFusedMoEMethod`` to the op ``fused_moe``.

SGLang: ``forward(layer, dispatch_output)`` returns a ``CombineInput``. Contract: ``fused_moe(hidden_states,
w13_weight, w2_weight, topk_weights, topk_ids, *, apply_router_weight_on_input=False,
routed_scaling_factor=1.0)``.

Falls through: other activations than a gated SiLU, biases, results that are not combined, weights that SGLang
has packed or permuted for a kernel of its own (``--moe-runner-backend``), and calls whose tokens or routing
come in another form than the standard one.
"""

from typing import Any

from sglang_fl.dispatch.plan import Forward
from sglang_fl.errors import REFUSALS
from sglang_fl.ops import OPS, Kernel, with_options
from sglang_fl.sglang_adapter.layers.adapter import Adapter, Own

__all__ = ["ADAPTERS"]


def bind(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return a forward that reads the experts' weights at each call; they may be replaced meanwhile.

    SGLang's layer class is here a quantisation method, which is given the experts in each call.
    """
    from sglang.srt.layers.moe.token_dispatcher import StandardCombineInput, StandardDispatchOutput
    from sglang.srt.layers.moe.topk import StandardTopKOutput

    run = with_options(kernel, _options(layer.moe_runner_config, own))

    def forward(method: Any, layer: Any, dispatch_output: Any) -> Any:
        # Other forms, such as the one on Ascend NPUs, have sorted the rows by expert already.
        is_standard = (
            type(dispatch_output) is StandardDispatchOutput
            and type(dispatch_output.topk_output) is StandardTopKOutput
            and dispatch_output.hidden_states_scale is None
            and not getattr(layer, "use_intel_amx_backend", False)
        )
        try:
            if is_standard:
                hidden, topk = dispatch_output.hidden_states, dispatch_output.topk_output
                result = run(hidden, layer.w13_weight, layer.w2_weight, topk.topk_weights, topk.topk_ids)
                return StandardCombineInput(hidden_states=result)
        except REFUSALS as refusal:
            own.because(refusal)
        return own(method, layer=layer, dispatch_output=dispatch_output)

    return forward


def _options(config: Any, own: Own) -> dict[str, Any]:
    """Return the options of the contract that these experts need."""
    options: dict[str, Any] = {}
    if config.apply_router_weight_on_input:
        options["apply_router_weight_on_input"] = True
    # Where SGLang runs its PyTorch path the models multiply by the factor, elsewhere its runner does.
    if not own.path.is_pytorch and config.routed_scaling_factor not in (None, 1.0):
        options["routed_scaling_factor"] = config.routed_scaling_factor
    return options


def why_not(layer: Any) -> str | None:
    """Say what of these experts the contract cannot express."""
    config = layer.moe_runner_config
    for name in ("gemm1_alpha", "gemm1_beta", "gemm1_clamp_limit", "swiglu_limit"):
        if getattr(config, name, None) is not None:
            return f"{name}={getattr(config, name)}"
    reasons = {
        f"activation={config.activation!r}": config.activation != "silu" or not config.is_gated,
        "no_combine": config.no_combine,
        "biases": layer.with_bias,
        "weights packed for another kernel": _is_packed(layer),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _is_packed(layer: Any) -> bool:
    packed = (
        "use_triton_kernels",
        "use_flashinfer_cutlass",
        "use_flashinfer_trtllm_moe",
        "use_deep_gemm",
        "w13_swiglu_interleaved",
        "_aiter_runner",
    )
    return any(getattr(layer, name, None) for name in packed)


ADAPTERS = (
    Adapter(
        "sglang.srt.layers.quantization.unquant:UnquantizedFusedMoEMethod", OPS["fused_moe"], bind, why_not
    ),
)

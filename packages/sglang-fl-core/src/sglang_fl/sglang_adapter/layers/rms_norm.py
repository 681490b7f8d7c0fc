"""``RMSNorm``, ``RMSNormWithoutScale`` and ``Gemma4RMSNorm`` without a shift to the op ``rms_norm``.

SGLang: ``RMSNorm.forward(x, residual=None, post_residual_addition=None, quant_linear=None)``, the last
from 0.5.18 on; the two others ``forward(x)``. Contract: ``rms_norm(x, weight, eps, residual=None, *,
post_residual_addition=None, variance_size_override=None, cast_x_before_out_mul=False,
fp32_residual=False)``.

Falls through: layers with ``override_orig_dtype`` (on-policy training), a ``post_residual_addition`` that
the kernel does not take, and calls in which SGLang fuses the FP8 quantisation of the linear layer that
follows.
"""

import functools
from operator import attrgetter
from typing import Any

import torch

from sglang_fl.dispatch.plan import Forward
from sglang_fl.errors import REFUSALS, UnsupportedError
from sglang_fl.ops import OPS, Kernel, lacking, with_options
from sglang_fl.sglang_adapter.layers import gemma_rms_norm
from sglang_fl.sglang_adapter.layers.adapter import Adapter, Own, parameter

__all__ = ["ADAPTERS", "options", "style", "why_not"]

#: What says which kind of norm a layer is: ``options`` and ``why_not`` follow from it.
style = attrgetter("variance_size_override", "cast_x_before_out_mul", "fp32_residual", "override_orig_dtype")


def bind(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return a forward that reads the layer's weight at each call; it may be replaced meanwhile."""
    known, run = style(layer), _styled(layer, kernel)
    takes_post = not lacking(kernel, ["post_residual_addition"])
    plain_linear: Any = None  # the linear layer last seen that SGLang would not quantise for

    def forward(
        layer: Any, x: Any, residual: Any = None, post_residual_addition: Any = None, quant_linear: Any = None
    ) -> Any:
        nonlocal plain_linear, known, run
        # Passed by the model up to 0.5.21, attached to the layer (fuse_input_quant) since.
        linear = layer.__dict__.get("_quant_linear") if quant_linear is None else quant_linear
        if linear is not plain_linear:
            if _fuses_quantisation(linear):
                return own(layer, x, residual, post_residual_addition, linear)
            plain_linear = linear
        try:
            if style(layer) != known:
                run = _styled(layer, kernel)
                known = style(layer)
            # SGLang, too, takes no notice of what is to be added to a residual that is not there.
            if post_residual_addition is None or residual is None:
                return run(x, parameter(layer, "weight"), layer.variance_epsilon, residual)
            if takes_post:
                return run(
                    x,
                    parameter(layer, "weight"),
                    layer.variance_epsilon,
                    residual,
                    post_residual_addition=post_residual_addition,
                )
        except REFUSALS as refusal:
            own.because(refusal)
        return own(layer, x, residual, post_residual_addition)

    return forward


def options(layer: Any) -> dict[str, Any]:
    """Return the options of the contract that this layer needs."""
    options = {
        "variance_size_override": layer.variance_size_override,
        "cast_x_before_out_mul": layer.cast_x_before_out_mul,
        "fp32_residual": layer.fp32_residual,
    }
    return {name: value for name, value in options.items() if value}


def _styled(layer: Any, kernel: Kernel) -> Kernel:
    """Return the kernel with the layer's options, or raise ``UnsupportedError``."""
    reason = why_not(layer)
    if reason is not None:
        raise UnsupportedError(reason)
    return with_options(kernel, options(layer))


def why_not(layer: Any) -> str | None:
    """Say what of a layer the contract cannot express."""
    if layer.override_orig_dtype is not None:
        return f"override_orig_dtype={layer.override_orig_dtype}"
    return None


def _fuses_quantisation(linear: Any) -> bool:
    """Whether SGLang's own norm would also quantise its output for the linear layer that follows.

    Models announce that layer on every norm (from 0.5.18 on); SGLang quantises only if it takes FP8
    with one static scale, and else ignores it.
    """
    if linear is None:
        return False
    from sglang.srt.layers import layernorm

    return bool(layernorm._flashinfer_rmsnorm_quant_available) and (
        layernorm._fp8_static_input_scale(linear) is not None
    )


def bind_without_scale(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return a forward that scales by ones."""

    def forward(layer: Any, x: Any) -> Any:
        try:
            return kernel(x, _ones(x.shape[-1], x.dtype, x.device), layer.eps)
        except REFUSALS as refusal:
            own.because(refusal)
        return own(layer, x)

    return forward


@functools.cache
def _ones(width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return ones, made by the first layer that needs them: in its first call, before a graph is captured."""
    with torch.inference_mode(False):  # a later call may have to keep them for a gradient
        return torch.ones(width, dtype=dtype, device=device)


def why_not_gemma4(layer: Any) -> str | None:
    """Say whether the layer shifts its weight."""
    if layer.with_scale and layer.scale_shift != 0.0:
        return f"scale_shift={layer.scale_shift}"
    return None


_OP = OPS["rms_norm"]

ADAPTERS = (
    Adapter("sglang.srt.layers.layernorm:RMSNorm", _OP, bind, why_not),
    # These override forward to flatten x, and call on.
    Adapter("sglang.srt.models.gemma3n_causal:Gemma3nRMSNorm", _OP, bind, why_not),
    Adapter("sglang.srt.models.glm4v:Glm4vRMSNorm", _OP, bind, why_not),
    Adapter("sglang.srt.layers.layernorm:RMSNormWithoutScale", _OP, bind_without_scale),
    Adapter("sglang.srt.layers.layernorm:Gemma4RMSNorm", _OP, gemma_rms_norm.bind_gemma4, why_not_gemma4),
    # With a shift. All adapters of a class lie in one file, which says their order.
    Adapter(
        "sglang.srt.layers.layernorm:Gemma4RMSNorm",
        OPS["gemma_rms_norm"],
        gemma_rms_norm.bind_gemma4,
        gemma_rms_norm.why_not_gemma4,
    ),
)

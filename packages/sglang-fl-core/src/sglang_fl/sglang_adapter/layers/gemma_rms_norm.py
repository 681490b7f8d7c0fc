"""``GemmaRMSNorm``, ``Gemma3RMSNorm`` and ``Gemma4RMSNorm`` with a shift of one to ``gemma_rms_norm``.

SGLang: ``GemmaRMSNorm.forward(x, residual=None, post_residual_addition=None)``,
``Gemma3RMSNorm.forward(x, residual=None)`` (to 0.5.16 without a residual), ``Gemma4RMSNorm.forward(x)``.
Contract: ``gemma_rms_norm(x, weight, eps, residual=None, *, post_residual_addition=None)``.

Falls through: a ``post_residual_addition`` that the kernel does not take. The weight is the layer's own,
not ``gemma_weight``, which is stale where the weight was set without its loader.
"""

from typing import Any

from sglang_fl.dispatch.plan import Forward
from sglang_fl.errors import REFUSALS
from sglang_fl.ops import OPS, Kernel, lacking
from sglang_fl.sglang_adapter.layers.adapter import Adapter, Own, parameter

__all__ = ["ADAPTERS"]


def bind(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return a forward that reads the layer's weight at each call; it may be replaced meanwhile."""
    takes_post = not lacking(kernel, ["post_residual_addition"])

    def forward(layer: Any, x: Any, residual: Any = None, post_residual_addition: Any = None) -> Any:
        try:
            if post_residual_addition is None or residual is None:
                return kernel(x, parameter(layer, "weight"), layer.variance_epsilon, residual)
            if takes_post:
                return kernel(
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


def bind_gemma3(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return a forward that reads the layer's weight at each call."""

    def forward(layer: Any, x: Any, residual: Any = None) -> Any:
        try:
            return kernel(x, parameter(layer, "weight"), layer.eps, residual)
        except REFUSALS as refusal:
            own.because(refusal)
        return own(layer, x) if residual is None else own(layer, x, residual)

    return forward


def bind_gemma4(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return a forward that reads the layer's weight at each call; without scale it is ones.

    Whether there is a scale, and by what it is shifted, decides between two ops: once it has changed, the
    layer is SGLang's.
    """
    known = layer.with_scale, layer.scale_shift

    def forward(layer: Any, x: Any) -> Any:
        try:
            if (layer.with_scale, layer.scale_shift) == known:
                return kernel(x, parameter(layer, "weight"), layer.eps)
        except REFUSALS as refusal:
            own.because(refusal)
        return own(layer, x)

    return forward


def why_not_gemma4(layer: Any) -> str | None:
    """Say whether the layer's weight is shifted by something else than one."""
    if not layer.with_scale or layer.scale_shift != 1.0:
        return f"with_scale={layer.with_scale}, scale_shift={layer.scale_shift}"
    return None


_OP = OPS["gemma_rms_norm"]

ADAPTERS = (
    Adapter("sglang.srt.layers.layernorm:GemmaRMSNorm", _OP, bind),
    Adapter("sglang.srt.layers.layernorm:Gemma3RMSNorm", _OP, bind_gemma3),
)

"""``RMSNorm`` to the op ``rms_norm``.

SGLang: ``forward(x, residual=None, post_residual_addition=None, quant_linear=None)``, the last
from 0.5.18 on. Contract: ``rms_norm(x, weight, eps, residual=None)``.

Falls through: the options of a layer that the contract does not have, batch-invariant mode, calls
with ``post_residual_addition``, and those in which SGLang fuses the FP8 quantisation of the linear
layer that follows.
"""

from collections.abc import Callable
from typing import Any

from sglang_fl.ops import OPS, Kernel
from sglang_fl.sglang_adapter.adapter import Adapter
from sglang_fl.sglang_adapter.seams import fuses_quantisation, is_batch_invariant_mode_enabled

__all__ = ["ADAPTER"]


def bind(layer: Any, kernel: Kernel, fall_through: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward that reads the layer's weight at each call; it may be replaced meanwhile."""
    if not _is_plain(layer) or is_batch_invariant_mode_enabled():
        return fall_through
    eps: float = layer.variance_epsilon
    state = vars(layer)
    plain_linear: Any = None  # the linear layer last seen that SGLang would not quantise for

    def forward(
        x: Any, residual: Any = None, post_residual_addition: Any = None, quant_linear: Any = None
    ) -> Any:
        nonlocal plain_linear
        # Passed by the model up to 0.5.21, attached to the layer (fuse_input_quant) since.
        linear = state.get("_quant_linear") if quant_linear is None else quant_linear
        if linear is not plain_linear:
            if fuses_quantisation(linear):
                return fall_through(x, residual, post_residual_addition, linear)
            plain_linear = linear
        if post_residual_addition is not None:
            return fall_through(x, residual, post_residual_addition)
        return kernel(x, layer.weight, eps, residual)

    return forward


def _is_plain(layer: Any) -> bool:
    """Whether the layer's options, fixed when it was built, are the contract's."""
    return not (
        layer.cast_x_before_out_mul
        or layer.fp32_residual
        or not layer.has_weight
        or layer.variance_size_override is not None
        or layer.override_orig_dtype is not None
    )


ADAPTER = Adapter("sglang.srt.layers.layernorm:RMSNorm", OPS["rms_norm"], bind)

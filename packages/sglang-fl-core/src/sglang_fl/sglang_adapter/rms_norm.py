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

__all__ = ["ADAPTER"]


def bind(layer: Any, kernel: Kernel, fall_through: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward that reads the layer's weight at each call; it may be replaced meanwhile."""
    if not _is_plain(layer) or _is_batch_invariant():
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
            if _fuses_quantisation(linear):
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


def _is_batch_invariant() -> bool:
    """Whether SGLang's deterministic inference is on; then its own kernels must run.

    SGLang switches it on after the model is built and before anything runs.
    """
    from sglang.srt.batch_invariant_ops import is_batch_invariant_mode_enabled

    return bool(is_batch_invariant_mode_enabled())


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


ADAPTER = Adapter("sglang.srt.layers.layernorm:RMSNorm", OPS["rms_norm"], bind)

"""``silu_and_mul`` in one Triton kernel, on the two halves as they lie."""

from torch import Tensor

from sglang_fl_nvidia.flagos.gated import gated

__all__ = ["silu_and_mul"]


def silu_and_mul(x: Tensor) -> Tensor:
    """See ``sglang_fl.ops.silu_and_mul``.

    Raises
    ------
    UnsupportedError : another dtype than float16, bfloat16 and float32
    """
    return gated(x, "silu")

"""``gelu_and_mul`` in one Triton kernel, on the two halves as they lie."""

from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl_nvidia.flagos.gated import gated

__all__ = ["gelu_and_mul"]


def gelu_and_mul(x: Tensor, approximate: str = "tanh") -> Tensor:
    """See ``sglang_fl.ops.gelu_and_mul``.

    Raises
    ------
    UnsupportedError : another dtype than float16, bfloat16 and float32
    """
    if approximate not in ("tanh", "none"):
        raise ContractError(f"gelu_and_mul: approximate={approximate!r}. Valid: none, tanh.")
    return gated(x, approximate)

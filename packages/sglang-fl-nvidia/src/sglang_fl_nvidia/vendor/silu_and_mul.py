"""``silu_and_mul`` by ``sgl_kernel.silu_and_mul(input, out=None)``, kernels 0.4.5 to 0.4.10."""

import sgl_kernel
import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl_nvidia.vendor.alignment import VECTOR_BYTES, dense

__all__ = ["silu_and_mul"]


def silu_and_mul(x: Tensor) -> Tensor:
    """See ``sglang_fl.ops.silu_and_mul``.

    Raises
    ------
    UnsupportedError : half a row is not a multiple of 16 bytes
    """
    half = x.shape[-1] // 2
    if half * x.element_size() % VECTOR_BYTES:
        raise UnsupportedError(
            f"sgl_kernel.silu_and_mul needs rows of 2 x 16 n bytes, not {2 * half} elements"
        )
    out = torch.empty((*x.shape[:-1], half), dtype=x.dtype, device=x.device)
    if x.numel():
        sgl_kernel.silu_and_mul(dense(x), out)
    return out

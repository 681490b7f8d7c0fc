"""``gelu_and_mul`` by ``sgl_kernel.gelu_and_mul`` and ``gelu_tanh_and_mul``, kernels 0.4.5 to 0.4.10."""

import sgl_kernel
import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl_nvidia.vendor.alignment import VECTOR_BYTES, dense

__all__ = ["gelu_and_mul"]

KERNELS = {"none": sgl_kernel.gelu_and_mul, "tanh": sgl_kernel.gelu_tanh_and_mul}


def gelu_and_mul(x: Tensor, approximate: str = "tanh") -> Tensor:
    """See ``sglang_fl.ops.gelu_and_mul``.

    Raises
    ------
    UnsupportedError : half a row is not a multiple of 16 bytes
    """
    half = x.shape[-1] // 2
    if half * x.element_size() % VECTOR_BYTES:
        raise UnsupportedError(
            f"sgl_kernel.gelu_and_mul needs rows of 2 x 16 n bytes, not {2 * half} elements"
        )
    out = torch.empty((*x.shape[:-1], half), dtype=x.dtype, device=x.device)
    if x.numel():
        KERNELS[approximate](dense(x), out)
    return out

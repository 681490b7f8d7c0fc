"""The op ``quick_gelu``: the GELU by a sigmoid, without a gate."""

import torch
from torch import Tensor

from sglang_fl.ops.op import Bound, Op, compute_dtype
from sglang_fl.ops.shared.pointwise import pointwise_cases

__all__ = ["OP", "quick_gelu"]


def quick_gelu(x: Tensor) -> Tensor:
    """Multiply ``x`` by the sigmoid of ``1.702 x``.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016, section 2; SGLang
    ``srt/layers/activation.py``, ``QuickGELU.forward_native``.

    Parameters
    ----------
    x : Tensor, any shape, float16, bfloat16, float32 or float64, any strides; not written

    Returns
    -------
    Tensor, shape, dtype and device of ``x``, new; formed in float32 and rounded once
    """
    wide = x.to(compute_dtype(x))
    return (wide * torch.sigmoid(1.702 * wide)).to(x.dtype)


# In float32 the exponential's argument is rounded: 1.7 |x| / 2 units.
OP = Op(quick_gelu, cases=pointwise_cases(), bound=Bound(half=0.55, single=64))

"""The op ``new_gelu``: the GELU of GPT-2, by the hyperbolic tangent, without a gate."""

import torch.nn.functional as F
from torch import Tensor

from sglang_fl.ops.op import Bound, Op, Outputs, compute_dtype
from sglang_fl.ops.shared.pointwise import pointwise_cases

__all__ = ["OP", "new_gelu"]


def new_gelu(x: Tensor) -> Tensor:
    """Apply the GELU in its approximation by the hyperbolic tangent.

    Source: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016, section 2; SGLang
    ``srt/layers/activation.py``, ``NewGELU.forward_native``.

    Parameters
    ----------
    x : Tensor, any shape, float16, bfloat16, float32 or float64, any strides; not written

    Returns
    -------
    Tensor, shape, dtype and device of ``x``, new; formed in float32 and rounded once
    """
    return F.gelu(x.to(compute_dtype(x)), approximate="tanh").to(x.dtype)


def _magnitude(truth: Outputs, x: Tensor) -> Tensor:
    """Return the size of the two terms of the GELU; left of zero they cancel."""
    return x.abs()


OP = Op(new_gelu, cases=pointwise_cases(), bound=Bound(half=0.55, single=8), magnitude=_magnitude)

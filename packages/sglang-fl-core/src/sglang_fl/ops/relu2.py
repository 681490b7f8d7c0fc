"""The op ``relu2``: the squared rectifier, without a gate."""

from torch import Tensor

from sglang_fl.ops.op import Bound, Op, compute_dtype
from sglang_fl.ops.shared.pointwise import pointwise_cases

__all__ = ["OP", "relu2"]


def relu2(x: Tensor) -> Tensor:
    """Square the positive elements and set the others to zero.

    Source: So et al., "Primer: Searching for Efficient Transformers for Language Modeling", 2021; SGLang
    ``srt/layers/activation.py``, ``ReLU2.forward_native``.

    Parameters
    ----------
    x : Tensor, any shape, float16, bfloat16, float32 or float64, any strides; not written

    Returns
    -------
    Tensor, shape, dtype and device of ``x``, new; rounded once
    """
    return x.to(compute_dtype(x)).relu().square().to(x.dtype)


OP = Op(relu2, cases=pointwise_cases(), bound=Bound(half=0.51, single=0.51))

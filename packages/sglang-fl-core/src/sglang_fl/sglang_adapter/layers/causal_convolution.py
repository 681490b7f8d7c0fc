"""The causal convolution of linear attention to ``causal_conv1d_fn`` and ``causal_conv1d_update``.

It is no layer class: where no Triton kernel can run, SGLang's backends convolve by an object of ours,
``CausalConvolution``, with the arguments of the two ops. Each of its methods is replaced by one that finds
its kernel in its first call. Elsewhere SGLang's functions stay.

Falls through: a call that the kernel refuses. The object then computes it by the reference; the dispatch log
calls that ``sglang(native)``.
"""

from typing import Any

from sglang_fl.dispatch.plan import Forward
from sglang_fl.errors import REFUSALS
from sglang_fl.ops import OPS, Kernel
from sglang_fl.sglang_adapter.layers.adapter import Adapter, Own

__all__ = ["ADAPTERS", "CLASS"]

CLASS = "sglang_fl.sglang_adapter.without_triton.kernels:CausalConvolution"


def bind(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return a method with the arguments of its op."""

    def convolve(layer: Any, *arguments: Any) -> Any:
        try:
            return kernel(*arguments)
        except REFUSALS as refusal:
            own.because(refusal)
        return own(layer, *arguments)

    return convolve


ADAPTERS = (
    Adapter(f"{CLASS}.prefill", OPS["causal_conv1d_fn"], bind),
    Adapter(f"{CLASS}.update", OPS["causal_conv1d_update"], bind),
)

"""The causal convolution of linear attention to ``causal_conv1d_fn`` and ``causal_conv1d_update``.

It is no layer class: where no Triton kernel can run, SGLang's backends convolve by an object of ours,
``CausalConvolution``, with the arguments of the two ops. Each of its methods is replaced by one that finds
its kernel in its first call. Elsewhere SGLang's functions stay.

Falls through: a call that the kernel refuses. The object then computes it by the reference; the dispatch log
calls that ``sglang(native)``.
"""

from sglang_fl.ops import OPS
from sglang_fl.sglang_adapter.layers.adapter import Adapter, bind_arguments

__all__ = ["ADAPTERS", "CLASS"]

CLASS = "sglang_fl.sglang_adapter.without_triton.kernels:CausalConvolution"

ADAPTERS = (
    Adapter(f"{CLASS}.prefill", OPS["causal_conv1d_fn"], bind_arguments),
    Adapter(f"{CLASS}.update", OPS["causal_conv1d_update"], bind_arguments),
)

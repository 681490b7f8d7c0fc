"""The state space model of Mamba-2 to ``mamba_chunk_scan_combined`` and ``selective_state_update``.

It is no layer class: where no Triton kernel can run, SGLang's mixer computes by an object of ours,
``StateSpace``, with the arguments of the two ops. Each of its methods is replaced by one that finds its
kernel in its first call. Elsewhere SGLang's functions stay.

Falls through: a call that the kernel refuses. The object then computes it by the reference, as the dispatch
log says.
"""

from sglang_fl.ops import OPS
from sglang_fl.sglang_adapter.layers.adapter import Adapter, bind_arguments

__all__ = ["ADAPTERS", "CLASS"]

CLASS = "sglang_fl.sglang_adapter.without_triton.kernels:StateSpace"

ADAPTERS = (
    Adapter(f"{CLASS}.scan", OPS["mamba_chunk_scan_combined"], bind_arguments),
    Adapter(f"{CLASS}.update", OPS["selective_state_update"], bind_arguments),
)

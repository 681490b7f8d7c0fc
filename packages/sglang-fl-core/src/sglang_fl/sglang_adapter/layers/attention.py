"""The kernels of the attention backend ``sglang_fl`` to ``decode_attention`` and ``extend_attention``.

They are no layer classes: the backend, which is ours, holds an object ``AttentionKernels`` and calls its
methods, with the arguments of the two ops. Each method of the object is replaced by one that finds its kernel
in its first call.

Falls through: a call with an option that the kernel does not take. The backend then computes it by the
reference; the dispatch log calls that ``sglang(native)``. SGLang's Triton attention backend calls kernels of
the same two ops, and which calls of those fall through the page on attention says; its other attention
backends are not touched.
"""

from typing import Any

from sglang_fl.dispatch.plan import Bind, Forward
from sglang_fl.errors import REFUSALS, UnsupportedError
from sglang_fl.ops import OPS, Kernel, Op, lacking
from sglang_fl.sglang_adapter.layers.adapter import Adapter, Own

__all__ = ["ADAPTERS", "CLASS"]

CLASS = "sglang_fl.sglang_adapter.attention.kernels:AttentionKernels"


def _bind(op: Op) -> Bind:
    """Return ``bind`` for a method with the arguments of an op."""

    def bind(layer: Any, kernel: Kernel, own: Own) -> Forward:
        lacks = frozenset(lacking(kernel, op.options))
        if lacks & layer.needs:  # of every call: then another candidate is the better one
            raise UnsupportedError(f"it does not take {', '.join(sorted(lacks & layer.needs))}")

        def attend(layer: Any, *tensors: Any, **options: Any) -> Any:
            try:
                if not lacks.isdisjoint(options):
                    raise UnsupportedError(f"it does not take {', '.join(sorted(lacks & options.keys()))}")
                return kernel(*tensors, **options)
            except REFUSALS as refusal:
                own.because(refusal)
            return own(layer, *tensors, **options)

        return attend

    return bind


ADAPTERS = (
    Adapter(f"{CLASS}.decode", OPS["decode_attention"], _bind(OPS["decode_attention"])),
    Adapter(f"{CLASS}.extend", OPS["extend_attention"], _bind(OPS["extend_attention"])),
)

"""The kernels of the backend ``sglang_fl`` to ``decode_attention``, ``extend_attention``, ``kv_cache_write``.

They are no layer classes: the backend, which is ours, holds an object ``AttentionKernels`` and calls its
methods, with the arguments of the ops. Each method of the object is replaced by one that finds its kernel
in its first call.

Falls through: a call with an option that the kernel does not take. The backend has nothing of SGLang's and
computes it by the reference, as the dispatch log says; also where a setting leaves the op to SGLang. Pools of
latents are written by SGLang's own method, as models with latent attention write them themselves. SGLang's
Triton attention backend calls kernels of the first two ops, and which calls of those fall through the page on
attention says; its other attention backends are not touched.
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

        def run(layer: Any, *tensors: Any, **options: Any) -> Any:
            try:
                if not lacks.isdisjoint(options):
                    raise UnsupportedError(f"it does not take {', '.join(sorted(lacks & options.keys()))}")
                return kernel(*tensors, **options)
            except REFUSALS as refusal:
                own.because(refusal)
            return own(layer, *tensors, **options)

        return run

    return bind


ADAPTERS = (
    Adapter(f"{CLASS}.decode", OPS["decode_attention"], _bind(OPS["decode_attention"])),
    Adapter(f"{CLASS}.extend", OPS["extend_attention"], _bind(OPS["extend_attention"])),
    Adapter(f"{CLASS}.write", OPS["kv_cache_write"], _bind(OPS["kv_cache_write"])),
)

"""``ReLU2`` to the op ``relu2``.

SGLang: ``forward(x)``. Contract: ``relu2(x)``. They are the same, so the bound forward is
the kernel itself.
"""

from sglang_fl.ops import OPS
from sglang_fl.sglang_adapter.layers.adapter import Adapter, bind_kernel

__all__ = ["ADAPTERS"]

ADAPTERS = (Adapter("sglang.srt.layers.activation:ReLU2", OPS["relu2"], bind_kernel),)

"""``SiluAndMul`` to the op ``silu_and_mul``.

SGLang: ``forward(x)``. Contract: ``silu_and_mul(x)``. They are the same, so the bound forward is
the kernel itself.
"""

from sglang_fl.ops import OPS
from sglang_fl.sglang_adapter.layers.adapter import Adapter, bind_kernel

__all__ = ["ADAPTERS"]

ADAPTERS = (Adapter("sglang.srt.layers.activation:SiluAndMul", OPS["silu_and_mul"], bind_kernel),)

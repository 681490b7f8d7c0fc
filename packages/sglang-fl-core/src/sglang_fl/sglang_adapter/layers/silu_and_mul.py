"""``SiluAndMul`` to the op ``silu_and_mul``.

SGLang: ``forward(x)``. Contract: ``silu_and_mul(x)``. They are the same.
"""

from sglang_fl.ops import OPS
from sglang_fl.sglang_adapter.layers.adapter import Adapter, bind_x

__all__ = ["ADAPTERS"]

ADAPTERS = (Adapter("sglang.srt.layers.activation:SiluAndMul", OPS["silu_and_mul"], bind_x),)

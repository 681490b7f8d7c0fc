"""``NewGELU`` to the op ``new_gelu``.

SGLang: ``forward(x)``. Contract: ``new_gelu(x)``. They are the same.
"""

from sglang_fl.ops import OPS
from sglang_fl.sglang_adapter.layers.adapter import Adapter, bind_x

__all__ = ["ADAPTERS"]

ADAPTERS = (Adapter("sglang.srt.layers.activation:NewGELU", OPS["new_gelu"], bind_x),)

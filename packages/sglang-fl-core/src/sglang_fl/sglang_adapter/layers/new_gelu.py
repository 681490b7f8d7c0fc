"""``NewGELU`` to the op ``new_gelu``.

SGLang: ``forward(x)``. Contract: ``new_gelu(x)``. They are the same, so the bound forward is
the kernel itself.
"""

from sglang_fl.ops import OPS
from sglang_fl.sglang_adapter.layers.adapter import Adapter, bind_kernel

__all__ = ["ADAPTERS"]

ADAPTERS = (Adapter("sglang.srt.layers.activation:NewGELU", OPS["new_gelu"], bind_kernel),)

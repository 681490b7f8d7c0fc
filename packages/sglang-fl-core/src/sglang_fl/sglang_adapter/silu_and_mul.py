"""``SiluAndMul`` to the op ``silu_and_mul``.

SGLang: ``forward(x)``. Contract: ``silu_and_mul(x)``. They are the same, so the bound forward is
the kernel itself.
"""

from collections.abc import Callable
from typing import Any

from sglang_fl.ops import OPS, Kernel
from sglang_fl.sglang_adapter.adapter import Adapter

__all__ = ["ADAPTER"]


def bind(layer: Any, kernel: Kernel, fall_through: Callable[..., Any]) -> Kernel:
    """Return the kernel."""
    return kernel


ADAPTER = Adapter("sglang.srt.layers.activation:SiluAndMul", OPS["silu_and_mul"], bind)

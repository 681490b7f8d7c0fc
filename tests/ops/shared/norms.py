"""What the root-mean-square norms share."""

from typing import Any

import torch

from sglang_fl.ops import Bound
from sglang_fl.ops.shared.norm import THREE_TERMS
from tests.ops.shared.drawing import Source
from tests.ops.subject import Arguments

__all__ = ["draw_norm", "normed"]


def draw_norm(source: Source, centre: float) -> tuple[dict[str, Any], Bound | None]:
    """Return what all norms take: perhaps a residual, perhaps a third summand."""
    shape = source.shape(source.number(1, 96))
    weight = (centre + source.normal(shape[-1], scale=0.1)).to(source.one_of(source.dtype, torch.float32))
    scale = source.one_of(0.25, 1.0, 4.0)
    arguments = {
        "x": source.strided(*shape, scale=scale),
        "weight": weight,
        "eps": source.one_of(1e-6, 1e-2),
    }
    summands = source.number(0, 2)
    for name in ("residual", "post_residual_addition")[:summands]:
        arguments[name] = source.strided(*shape, scale=scale)
    return arguments, THREE_TERMS if summands == 2 else None


def normed(layer: Any, arguments: Arguments) -> Any:
    layer.weight.data = arguments["weight"]
    # It adds to what it is given where that is float32.
    copies = (arguments.get(name) for name in ("x", "residual", "post_residual_addition"))
    return layer.forward_native(*(copy if copy is None else copy.clone() for copy in copies))

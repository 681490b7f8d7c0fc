"""All that the tests know of the op ``gemma_rms_norm``."""

from typing import Any

from torch import Tensor

from sglang_fl.ops import Outputs
from sglang_fl.ops.gemma_rms_norm import gemma_rms_norm
from tests.ops import rms_norm
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.shared.norms import draw_norm, normed
from tests.ops.subject import Arguments, Array, Subject


def formula(x: Array, weight: Array, eps: float, *rest: Any, **options: Any) -> tuple[Array, ...]:
    return rms_norm.formula(x, weight + 1, eps, *rest, **options)


def draw(source: Source) -> Drawn:
    return Drawn(*draw_norm(source, 0.0))


def native(arguments: Arguments) -> Any:
    from sglang.srt.layers import layernorm

    return normed(layernorm.GemmaRMSNorm(arguments["x"].shape[-1], arguments["eps"]), arguments)


def weight_without_one(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    return gemma_rms_norm(x, weight.float() - 1, eps, residual)


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=native,
    wrong={
        "cases": (weight_without_one,),
    },
)

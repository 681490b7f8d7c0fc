"""Sample inputs of the ops that take one tensor and compute each element by itself, gated or not."""

from typing import Any

import torch

from sglang_fl.ops.op import Arguments, Case

__all__ = ["activation_case", "pointwise_cases"]


def activation_case(
    name: str,
    *shape: int,
    scale: float = 1.0,
    padding: int = 0,
    lowered: float = 0.0,
    **others: Any,
) -> Case:
    """Return a case with the argument ``x``.

    Parameters
    ----------
    name : of the case
    shape : of ``x``
    scale : of its elements, which are normally distributed
    padding : elements between its rows
    lowered : taken from all rows but the first, so that results underflow
    others : the further arguments
    """

    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        *rows, width = shape
        x = torch.randn(*rows, width + padding, generator=generator) * scale
        x[1:] -= lowered
        return {"x": x.to(dtype)[..., :width], **others}

    return Case(name, make)


def pointwise_cases() -> tuple[Case, ...]:
    """Return cases with the one argument ``x``."""
    return (
        activation_case("empty", 0, 256),
        activation_case("one-token", 1, 896),
        activation_case("one-axis", 64),
        activation_case("odd-width", 7, 37),
        activation_case("three-axes", 2, 3, 64),
        activation_case("many-tokens", 129, 4096),
        activation_case("large-values", 16, 512, scale=8.0),
        activation_case("row-strided", 5, 256, padding=64),
        activation_case("underflowing", 5, 256, lowered=200.0),
    )

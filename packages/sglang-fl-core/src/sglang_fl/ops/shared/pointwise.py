"""Sample inputs of the ops that take one tensor and compute each element by itself."""

import torch

from sglang_fl.ops.op import Arguments, Case

__all__ = ["pointwise_cases"]


def pointwise_cases() -> tuple[Case, ...]:
    """Return cases with the one argument ``x``."""
    return (
        _case("empty", 0, 256),
        _case("one-token", 1, 896),
        _case("one-axis", 64),
        _case("odd-width", 7, 37),
        _case("three-axes", 2, 3, 64),
        _case("many-tokens", 129, 4096),
        _case("large-values", 16, 512, scale=8.0),
        _case("row-strided", 5, 256, padding=64),
    )


def _case(name: str, *shape: int, scale: float = 1.0, padding: int = 0) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        *rows, width = shape
        x = torch.randn(*rows, width + padding, generator=generator) * scale
        return {"x": x.to(dtype)[..., :width]}

    return Case(name, make)

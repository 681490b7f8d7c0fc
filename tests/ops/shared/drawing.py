"""Calls drawn by hypothesis: shapes, strides, dtypes and options; the values come from a seed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from sglang_fl.ops import Bound

__all__ = ["DTYPES", "Drawn", "Source", "calls"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Drawn:
    """One call of an op.

    Parameters
    ----------
    arguments : by name
    bound : where its options round more often than the op does otherwise
    """

    arguments: dict[str, Any]
    bound: Bound | None = None


class Source:
    """Draws a call: what hypothesis shall vary and shrink, and numbers from a generator that it seeds.

    Parameters
    ----------
    draw : of hypothesis
    is_plain : whether options are left out that SGLang's own PyTorch does not have
    """

    def __init__(self, draw: Draw, is_plain: bool = False) -> None:
        self.draw = draw
        self._is_plain = is_plain
        self._random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
        self.dtype: torch.dtype = draw(st.sampled_from(DTYPES))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def one_of(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def option(self, plain: Any, *others: Any) -> Any:
        """Return one of these; in a plain call the first."""
        return plain if self._is_plain else self.one_of(plain, *others)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=self._random)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._random)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(
            0, high, shape, generator=self._random, dtype=self.one_of(torch.int32, torch.int64)
        )

    def rows(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor whose rows are dense, and lie at some stride."""
        padding = self.one_of(0, 0, 1, 8)
        wide = self.normal(*shape[:-1], shape[-1] + padding, scale=scale).to(dtype or self.dtype)
        return wide[..., : shape[-1]]

    def strided(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Return a tensor of any strides."""
        layout = self.one_of("dense", "rows", "columns", "every-second")
        if layout == "columns" and len(shape) > 1:
            return self.normal(*shape[:-2], shape[-1], shape[-2], scale=scale).to(self.dtype).mT
        if layout == "every-second":
            return self.normal(*shape[:-1], 2 * shape[-1], scale=scale).to(self.dtype)[..., ::2]
        return self.rows(*shape, scale=scale)

    def shape(self, width: int) -> tuple[int, ...]:
        return (*(self.number(0, 5) for _ in range(self.number(0, 2))), width)

    def scale(self) -> float:
        return self.one_of(1e-3, 0.25, 1.0, 4.0)


def calls(make: Callable[[Source], Drawn], is_plain: bool = False) -> st.SearchStrategy[Drawn]:
    """Return a strategy for the calls that ``make`` makes; see ``Source``."""

    @st.composite
    def call(draw: Draw) -> Drawn:
        return make(Source(draw, is_plain))

    return call()

"""An emulated function under its written signature, and what it demands of its arguments.

What is demanded is what the library's documentation demands.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sglang_fl.conformance.simulated import emulated

__all__ = ["demand", "demand_dense", "demand_like", "emulates"]

Function = Callable[..., Any]


def emulates(written: Function) -> Callable[[Function], Function]:
    """Make a function of CPU tensors the emulation of a library function, under its written signature.

    The emulation takes by name what it looks at. All else keeps its default, or is None where there is none:
    options that nobody uses here are refused, not ignored.

    Parameters
    ----------
    written : from ``signatures``
    """
    signature = inspect.signature(written)
    defaults = {
        name: None if parameter.default is parameter.empty else parameter.default
        for name, parameter in signature.parameters.items()
    }

    def decorate(emulation: Function) -> Function:
        used = inspect.signature(emulation).parameters

        @functools.wraps(written)
        def function(*arguments: Any, **options: Any) -> Any:
            bound = signature.bind(*arguments, **options)
            bound.apply_defaults()
            for name, value in bound.arguments.items():
                is_default = value is defaults[name] or (
                    not isinstance(value, Tensor) and value == defaults[name]
                )
                demand(name in used or is_default, f"{written.__name__}: {name} is not emulated")
            return emulation(**{name: bound.arguments[name] for name in used})

        return emulated(function)

    return decorate


def demand(holds: bool, otherwise: str) -> None:
    """Raise ``RuntimeError`` unless it holds."""
    if not holds:
        raise RuntimeError(otherwise)


def demand_dense(name: str, **tensors: Tensor | None) -> None:
    """Refuse strided tensors."""
    for title, tensor in tensors.items():
        demand(tensor is None or tensor.is_contiguous(), f"{name}: {title} is not contiguous")


def demand_like(name: str, dtype: torch.dtype, shape: Sequence[int], **tensors: Tensor | None) -> None:
    """Refuse tensors of another dtype or shape; None is allowed."""
    for title, tensor in tensors.items():
        if tensor is not None and (tensor.dtype is not dtype or tuple(tensor.shape) != tuple(shape)):
            raise RuntimeError(
                f"{name}: {title} is {tuple(tensor.shape)} {tensor.dtype}, not {tuple(shape)} {dtype}"
            )

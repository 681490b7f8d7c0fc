"""What the emulated functions demand of their arguments, as the library's documentation does."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["demand", "demand_defaults", "demand_dense", "demand_like"]


def demand(holds: bool, otherwise: str) -> None:
    """Raise ``RuntimeError`` unless it holds."""
    if not holds:
        raise RuntimeError(otherwise)


def demand_defaults(name: str, **are_default: bool) -> None:
    """Refuse options that are not emulated."""
    for option, is_default in are_default.items():
        demand(is_default, f"{name}: {option} is not emulated")


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

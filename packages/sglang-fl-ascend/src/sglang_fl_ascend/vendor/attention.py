"""What both kernels of attention ask of their arguments."""

import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError

__all__ = ["require", "require_dtype"]


def require(holds: bool, otherwise: str) -> None:
    """Raise ``UnsupportedError`` unless it holds."""
    if not holds:
        raise UnsupportedError(otherwise)


def require_dtype(operator: str, known: tuple[torch.dtype, ...], **tensors: Tensor) -> None:
    """Raise ``UnsupportedError`` unless all tensors have one dtype, one of those known."""
    given = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    listed = ", ".join(f"{name} {dtype}" for name, dtype in given.items())
    is_one = len({tensor.dtype for tensor in tensors.values()}) == 1
    names = ", ".join(str(dtype).removeprefix("torch.") for dtype in known)
    require(
        is_one and next(iter(tensors.values())).dtype in known,
        f"{operator} takes one dtype of {names}, not {listed}",
    )

"""What both kernels of attention ask of their arguments, and give the library in the form that it takes."""

import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import shares_memory

__all__ = ["as_float", "refuse_lse_beside_sinks", "require_one_dtype", "result_for"]


def require_one_dtype(function: str, **tensors: Tensor) -> None:
    """Raise ``UnsupportedError`` unless all tensors have one dtype: rounding costs more than is allowed."""
    given = {name: tensor.dtype for name, tensor in tensors.items()}
    if len(set(given.values())) > 1:
        listed = ", ".join(f"{name} {str(dtype).removeprefix('torch.')}" for name, dtype in given.items())
        raise UnsupportedError(f"{function} takes one dtype, not {listed}")


def refuse_lse_beside_sinks(function: str, sinks: Tensor | None, return_lse: bool) -> None:
    """Raise ``UnsupportedError`` where both are asked for: whether a sink is in the logarithm is not said."""
    if sinks is not None and return_lse:
        raise UnsupportedError(f"{function} does not say whether a sink is in the logarithm that it returns")


def as_float(sinks: Tensor | None) -> Tensor | None:
    """Return sinks as the library takes them: float32, dense."""
    return None if sinks is None else sinks.to(torch.float32).contiguous()


def result_for(q: Tensor, values: Tensor, out: Tensor | None, *others: Tensor | None) -> Tensor:
    """Return where the result goes, (rows, H, DV).

    Parameters
    ----------
    q, values, others : the arguments of the call
    out : taken where it is dense and its memory is its own; else the result is a new tensor
    """
    if out is not None and out.is_contiguous() and not shares_memory(out, q, values, *others):
        return out
    return q.new_empty(*q.shape[:2], values.shape[2])

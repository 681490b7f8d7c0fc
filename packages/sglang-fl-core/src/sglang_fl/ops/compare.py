"""The distance of a result from float64 arithmetic, in units of its dtype's rounding."""

import torch
from torch import Tensor

__all__ = ["error_in_units"]


def error_in_units(
    output: Tensor, truth: Tensor, magnitude: Tensor | None = None, unit: torch.dtype | None = None
) -> float:
    """Return the largest error of ``output`` in units of ``eps * magnitude``.

    Parameters
    ----------
    output : Tensor, any floating dtype
    truth : Tensor, same shape, float64
    magnitude : Tensor, same shape, float64: the size of the terms of each element; default ``truth``
    unit : the dtype that gives ``eps``; default that of ``output``

    Returns
    -------
    float : 0.5 for a result rounded once to nearest; 0.0 for an empty one; inf where the output is
        not finite and the truth is, or the other way round
    """
    if output.numel() == 0:
        return 0.0
    info = torch.finfo(unit or output.dtype)
    # A truth too large for the dtype rounds to infinity there; then infinity is the right answer.
    rounded = truth.to(output.dtype)
    got, size = output.to(torch.float64), (truth if magnitude is None else magnitude).abs()
    error = (got - truth).abs() / (info.eps * size.clamp_min(info.smallest_normal))
    agreed = (output == rounded) | (output.isnan() & rounded.isnan())
    error = torch.where(
        agreed, error.nan_to_num(0.0, posinf=0.0), error.nan_to_num(torch.inf, posinf=torch.inf)
    )
    return float(error.max())

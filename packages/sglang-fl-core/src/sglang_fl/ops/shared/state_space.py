"""What the ops of Mamba-2 share: one step of the recurrence, its step sizes, checks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_fl.errors import ContractError

__all__ = ["check_heads", "step", "step_sizes"]


def check_heads(
    op: str, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor
) -> None:
    """Raise ``ContractError`` where inputs, step sizes and parameters are not of the same heads.

    Parameters
    ----------
    op : the op's name
    x, dt, A, B, C, D, bias : see ``mamba_chunk_scan_combined``; ``bias`` is its ``dt_bias``
    """
    heads = x.shape[-2]
    if B.shape != C.shape or B.shape[:-2] != x.shape[:-2] or not B.shape[-2] or heads % B.shape[-2]:
        raise ContractError(f"{op}: x {tuple(x.shape)}, B {tuple(B.shape)}, C {tuple(C.shape)} do not fit")
    if dt.shape != x.shape[:-1] or any(each.shape != (heads,) for each in (A, D, bias)):
        raise ContractError(
            f"{op}: dt {tuple(dt.shape)}, A {tuple(A.shape)}, D {tuple(D.shape)} and dt_bias "
            f"{tuple(bias.shape)} are not of the {heads} heads of x {tuple(x.shape)}"
        )


def step_sizes(dt: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``softplus(dt + bias)`` in ``dtype``."""
    return F.softplus(dt.to(dtype) + bias.to(dtype), threshold=20.0)


def step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> tuple[Tensor, Tensor]:
    """Take one step of the state space model in each head, all in one dtype.

    ``S = exp(dt A) S + dt x B^T; y = S C + D x``. Source: Dao and Gu, "Transformers are SSMs", 2024.

    Parameters
    ----------
    state : Tensor, (..., H, P, N)
    x : Tensor, (..., H, P)
    dt : Tensor, (..., H)
    A, D : Tensors, (H,)
    B, C : Tensors, (..., G, N); H is a multiple of G, and neighbouring heads share one

    Returns
    -------
    (state, y) : Tensors, (..., H, P, N) and (..., H, P)
    """
    B, C = (each.repeat_interleave(x.shape[-2] // each.shape[-2], dim=-2) for each in (B, C))
    state = state * (dt * A).exp()[..., None, None]
    state = state + (dt.unsqueeze(-1) * x).unsqueeze(-1) * B.unsqueeze(-2)
    return state, (state @ C.unsqueeze(-1)).squeeze(-1) + D.unsqueeze(-1) * x

"""What the ops share that read or write pools in 8 bit, with one scale for keys and one for values."""

import torch
from torch import Tensor

from sglang_fl.errors import ContractError

__all__ = ["EIGHT_BIT", "check_scales", "factors"]

#: The dtypes of 8 bit that pools of keys and values may have.
EIGHT_BIT = (torch.float8_e4m3fn, torch.float8_e5m2)


def check_scales(
    op: str, k_buffer: Tensor, v_buffer: Tensor, k_scale: float | None, v_scale: float | None
) -> None:
    """Raise ``ContractError`` where pools and scales do not fit.

    Scales are given together or not at all; pools in 8 bit need them, so that a kernel says by its options
    whether it takes such pools.
    """
    if (k_scale is None) is not (v_scale is None):
        raise ContractError(f"{op}: of k_scale and v_scale one alone is given")
    for name, pool in (("k_buffer", k_buffer), ("v_buffer", v_buffer)):
        if pool.element_size() > 1:
            continue
        if pool.dtype not in EIGHT_BIT:
            valid = ", ".join(map(_plain, EIGHT_BIT))
            raise ContractError(f"{op}: {name} in {_plain(pool.dtype)}; in 8 bit there are {valid}")
        if k_scale is None:
            raise ContractError(f"{op}: {name} in {_plain(pool.dtype)} needs k_scale and v_scale")


def factors(k_scale: float | None = None, v_scale: float | None = None) -> tuple[float, float]:
    """Return what the keys and the values of pools are to be multiplied by."""
    return 1.0 if k_scale is None else k_scale, 1.0 if v_scale is None else v_scale


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

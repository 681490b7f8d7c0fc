"""What the kernels of the causal convolution share: its activation, and what they are compiled for."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl_nvidia.flagos.launch import DTYPES

__all__ = ["MOST_TAPS", "activated", "constants"]

#: A program has all taps of a channel, and each is a step of an unrolled loop.
MOST_TAPS = 16


@triton.jit
def activated(y, IS_SILU: tl.constexpr) -> Any:
    """Return ``y sigmoid(y)``, or y itself."""
    if IS_SILU:
        y = y * tl.sigmoid(y)
    return y


def constants(
    x: Tensor, conv_states: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None
) -> dict[str, int]:
    """Return the constants of a kernel that say how states and weights lie, and what is computed.

    Weights are read where they lie, of any strides: a kernel loads them before it waits for its predecessor,
    which the copy of one would be.

    Raises
    ------
    UnsupportedError : another dtype, or more than 16 taps
    """
    dtypes = {tensor.dtype for tensor in (x, conv_states, weight, bias) if tensor is not None}
    if not dtypes <= set(DTYPES):
        named = ", ".join(sorted(map(str, dtypes)))
        raise UnsupportedError(f"it computes with float16, bfloat16 and float32, not with {named}")
    channels, width = weight.shape
    if width > MOST_TAPS:
        raise UnsupportedError(f"it takes at most {MOST_TAPS} taps, not {width}")
    slot, channel, tap = conv_states.stride()
    return {
        "SLOT_STRIDE": slot,
        "CHANNEL_STRIDE": channel,
        "TAP_STRIDE": tap,
        "WEIGHT_STRIDE": weight.stride(0),
        "WEIGHT_TAP": weight.stride(1),
        "BIAS_STRIDE": 0 if bias is None else bias.stride(0),
        "CHANNELS": channels,
        "WIDTH": width,
        "TAPS": triton.next_power_of_2(width),
        "HAS_BIAS": bias is not None,
        "IS_SILU": activation == "silu",
    }

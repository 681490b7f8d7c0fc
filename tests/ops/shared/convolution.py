"""What the ops of the causal convolution share: one sequence in float64, and pools of states."""

import numpy as np
import torch
from torch import Tensor

from tests.ops.shared.drawing import Source
from tests.ops.subject import Array

__all__ = ["NO_NATIVE", "convolve", "drawn_convolution"]

NO_NATIVE = "SGLang has Triton and CUDA kernels of the convolution, and no path in PyTorch"


def convolve(
    x: Array, weight: Array, bias: Array | None, before: Array, activation: str | None
) -> tuple[Array, Array]:
    """Run one sequence: (dim, T), (dim, width), (dim,) and (dim, width - 1); token by token."""
    inputs, width = np.concatenate([before, x], axis=1), weight.shape[1]
    y = np.zeros(x.shape)
    for token in range(x.shape[1]):
        y[:, token] = np.einsum("cj,cj->c", weight, inputs[:, token : token + width])
    y = y if bias is None else y + bias[:, None]
    if activation == "silu":
        y = y / (1 + np.exp(-y))
    return y, inputs[:, inputs.shape[1] - width + 1 :]


def drawn_convolution(source: Source, sequences: int) -> tuple[int, dict[str, Tensor | str | None], Tensor]:
    """Return how many channels, what both ops take beside the input, and the rows of some sequences."""
    channels, width = source.number(1, 9), source.number(2, 5)
    slots = sequences + source.number(0, 3)
    state_dtype = source.one_of(torch.float32, source.dtype)
    rows = source.uniform(slots).argsort()[:sequences]
    absent = source.uniform(sequences) < source.one_of(0.0, 0.4)
    given = {
        "weight": source.strided(channels, width),
        "bias": source.one_of(None, source.normal(channels)),
        "conv_states": source.normal(slots, channels, width - 1 + source.one_of(0, 2)).to(state_dtype),
        "activation": source.one_of(None, "silu"),
    }
    given["conv_states"] = given["conv_states"][..., : width - 1]
    return channels, given, rows.masked_fill(absent, -1).to(source.one_of(torch.int32, torch.int64))

"""The gates of shared experts and of attention, in plain PyTorch, with SGLang's signatures."""

import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops.op import compute_dtype

__all__ = ["fused_gate_sigmoid_mul", "fused_gate_sigmoid_mul_add", "fused_sigmoid_mul"]


def fused_gate_sigmoid_mul(hidden_states: Tensor, gate_weight: Tensor, shared_output: Tensor) -> Tensor:
    """Return ``sigmoid(hidden_states gate_weight) shared_output``: (T, D), (D,) and (T, D)."""
    return _gated(hidden_states, gate_weight, shared_output).to(shared_output.dtype)


def fused_gate_sigmoid_mul_add(
    hidden_states: Tensor, gate_weight: Tensor, shared_output: Tensor, final_hidden_states: Tensor
) -> None:
    """Add that to ``final_hidden_states``, rounded once."""
    total = final_hidden_states + _gated(hidden_states, gate_weight, shared_output)
    final_hidden_states.copy_(total)


def fused_sigmoid_mul(
    attn_output: Tensor, gate: Tensor, inplace: bool = False, quant: bool = False
) -> Tensor:
    """Return ``attn_output sigmoid(gate)``, (T, H D); the gate may be (T, H, D), at any stride."""
    if quant:
        raise UnsupportedError("a gate of attention with a result in 8 bit has no plain PyTorch path")
    dtype = compute_dtype(attn_output)
    gated = (attn_output.to(dtype) * torch.sigmoid(gate.reshape(attn_output.shape).to(dtype))).to(
        attn_output.dtype
    )
    return attn_output.copy_(gated) if inplace else gated


def _gated(hidden_states: Tensor, gate_weight: Tensor, shared_output: Tensor) -> Tensor:
    dtype = compute_dtype(hidden_states)
    gate = torch.sigmoid(hidden_states.to(dtype) @ gate_weight.to(dtype))
    return gate.unsqueeze(-1) * shared_output.to(dtype)

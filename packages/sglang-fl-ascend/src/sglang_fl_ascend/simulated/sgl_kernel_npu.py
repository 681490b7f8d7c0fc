"""The one function of ``sgl_kernel_npu`` that SGLang calls for Qwen3-like models wherever there is an NPU.

Its signature is that of SGLang's call in ``srt/models/qwen3_moe.py``, 0.5.23.
"""

import torch
from torch import Tensor

from sglang_fl.conformance.simulated import emulated

__all__ = ["split_qkv_rmsnorm_rope"]


@emulated
def split_qkv_rmsnorm_rope(
    qkv: Tensor,
    sin: Tensor,
    cos: Tensor,
    q_hidden_size: int,
    kv_hidden_size: int,
    head_dim: int,
    eps: float,
    q_weight: Tensor,
    k_weight: Tensor,
    q_bias: Tensor | None = None,
    k_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Split, norm the heads of q and k, and rotate them by halves; tables (T, 1, 1, head_dim)."""
    if q_bias is not None or k_bias is not None:
        raise RuntimeError("split_qkv_rmsnorm_rope: biases are not emulated")
    q, k, v = torch.split(qkv, [q_hidden_size, kv_hidden_size, kv_hidden_size], dim=-1)
    tables = [table.float().view(len(qkv), 1, head_dim) for table in (sin, cos)]

    def turned(x: Tensor, weight: Tensor) -> Tensor:
        heads = x.float().view(len(x), -1, head_dim)
        heads = heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + eps) * weight.float()
        first, second = heads.chunk(2, dim=-1)
        rotated = heads * tables[1] + torch.cat((-second, first), -1) * tables[0]
        return rotated.to(x.dtype).flatten(1)

    return turned(q, q_weight), turned(k, k_weight), v.contiguous()

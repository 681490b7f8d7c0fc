"""What SGLang's models compute between projection and attention, with layers of SGLang's own."""

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.workloads import Attention
from sglang_fl.ops import KV_CACHE

__all__ = ["Step"]

DTYPE = torch.bfloat16


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=DTYPE)


@dataclass(frozen=True)
class Step:
    """What a model computes between projection and attention, and the KV cache that it writes.

    Parameters
    ----------
    attention : its shape
    norms, rotation : SGLang's layers: of query and key, and the rotary embedding
    pools : of keys and values, (slots, heads, head_size)
    """

    attention: Attention
    norms: tuple[torch.nn.Module, torch.nn.Module]
    rotation: Any  # a class of SGLang
    pools: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def of(cls, attention: Attention, length: int, slots: int) -> "Step":
        """Make layers for positions up to a length, and pools of so many slots."""
        from sglang.srt.layers.layernorm import RMSNorm
        from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

        size = attention.head_size
        norms = RMSNorm(size).to("cuda", DTYPE), RMSNorm(size).to("cuda", DTYPE)
        for norm in norms:
            norm.weight.data = 1 + 0.1 * random(size)
        rotation = RotaryEmbedding(size, attention.rotary_dim, length, 10000, True, DTYPE).cuda()
        pools = random(slots, attention.key_heads, size), random(slots, attention.key_heads, size)
        return cls(attention, norms, rotation, pools)

    def inputs(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return a packed projection, positions and slots."""
        shape = self.attention
        width = (shape.heads + 2 * shape.key_heads) * shape.head_size
        slots = torch.randperm(len(self.pools[0]), device="cuda")[:tokens]
        positions = torch.randint(len(self.rotation.cos_sin_cache), (tokens,), device="cuda")
        return random(tokens, width), positions, slots

    def parts(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return query, key and value as SGLang's models take them out of the projection."""
        shape = self.attention
        widths = [count * shape.head_size for count in (shape.heads, shape.key_heads, shape.key_heads)]
        return qkv.split(widths, dim=-1)

    @property
    def name(self) -> str:
        """Checkpoint and heads, for a table."""
        shape = self.attention
        return f"{shape.name} {shape.heads}+{shape.key_heads}x{shape.head_size}"

    def moved(self, tokens: int) -> int:
        """Return the bytes that must be read and written: heads twice, values, and both into the cache."""
        shape = self.attention
        return 2 * tokens * shape.head_size * (2 * shape.heads + 5 * shape.key_heads)

    def sglang_norms(self, q: torch.Tensor, k: torch.Tensor) -> None:
        """Norm query and key in place, as SGLang does on CUDA."""
        from sglang.srt.models.utils import fused_inplace_qknorm

        size = self.attention.head_size
        fused_inplace_qknorm(
            q=q.view(len(q), -1, size),
            k=k.view(len(k), -1, size),
            q_weight=self.norms[0].weight,
            k_weight=self.norms[1].weight,
            head_dim=size,
            eps=self.norms[0].variance_epsilon,
        )

    def sglang_rotates_and_writes(
        self, positions: torch.Tensor, parts: tuple[torch.Tensor, ...], slots: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate in place and write the KV cache, in one kernel or in two, as the model does."""
        from sglang.srt.mem_cache.memory_pool import store_cache
        from sglang.srt.models.utils import FusedSetKVBufferArg

        q, k, v = parts
        k_rows, v_rows = (pool.view(len(pool), -1) for pool in self.pools)
        if self.attention.rotation_writes_cache:
            written = FusedSetKVBufferArg(value=v, k_buffer=k_rows, v_buffer=v_rows, cache_loc=slots)
            return self.rotation.forward_cuda(positions, q, k, fused_set_kv_buffer_arg=written)
        q, k = self.rotation.forward_cuda(positions, q, k)
        store_cache(k, v, k_rows, v_rows, slots)
        return q, k

    def cache_options(self, v: torch.Tensor, slots: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the options of our ops by which a call writes the KV cache."""
        return dict(zip(KV_CACHE, (v, *self.pools, slots), strict=True))

"""Attention over a pool of keys and values: inputs, SGLang's own Triton kernels and those of others."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.cell import Cell, kernel
from benchmarks.workloads import CONTEXTS, DECODED, EXTENDED, PagedAttention

__all__ = ["Pool", "decode_attention", "decode_cells", "extend_attention", "extend_cells"]

DTYPE = torch.bfloat16
#: Slots that lie side by side, as those of a prompt do.
RUN = 16
#: Bytes of keys and values of a call that are measured at most.
MOST_MOVED = 18e9
#: So many slots at least, of which calls draw theirs: not in the L2 cache.
LEAST_SLOTS = 2**17


@dataclass(frozen=True)
class Pool:
    """A pool of keys and values, with random numbers in it; each call finds its slots elsewhere.

    Parameters
    ----------
    shape : of a layer
    k, v : (slots, key heads, elements); of latent attention the values are the first part of the keys
    """

    shape: PagedAttention
    k: torch.Tensor
    v: torch.Tensor

    @classmethod
    def of(cls, shape: PagedAttention, slots: int) -> "Pool":
        """Make one of so many slots, or a few more."""
        slots = -(-slots // RUN) * RUN
        dtype = torch.float8_e4m3fn if shape.is_eight_bit else DTYPE
        k = random(slots, shape.kv_heads, shape.keys).to(dtype)
        if shape.is_latent:
            return cls(shape, k, k[..., : shape.values])
        return cls(shape, k, random(slots, shape.kv_heads, shape.values).to(dtype))

    @property
    def scales(self) -> dict[str, float]:
        """What a kernel of ours is told of the pool."""
        return {"k_scale": 1.0, "v_scale": 1.0} if self.shape.is_eight_bit else {}

    @property
    def name(self) -> str:
        """Checkpoint and heads, for a table."""
        shape = self.shape
        return f"{shape.name} {shape.heads}/{shape.kv_heads}x{shape.keys}"

    def lists(self, sequences: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return bounds and slots of sequences of one length, in runs of slots."""
        runs = torch.randperm(len(self.k) // RUN, device="cuda")[: -(-sequences * length // RUN)]
        slots = (runs[:, None] * RUN + torch.arange(RUN, device="cuda")).flatten()[: sequences * length]
        return torch.arange(sequences + 1, device="cuda", dtype=torch.int32) * length, slots


def random(*sizes: int) -> torch.Tensor:
    return torch.randn(*sizes, device="cuda", dtype=DTYPE)


def decode_attention(shape: PagedAttention) -> Iterator[Cell]:
    """Yield cells of one token each of several sequences, all of one length."""
    yield from decode_cells(shape, [(sequences, length) for length in CONTEXTS for sequences in DECODED])


def decode_cells(shape: PagedAttention, sizes: list[tuple[int, ...]]) -> Iterator[Cell]:
    """Yield those of these numbers and lengths of sequences that are not too large."""
    sizes = [(n, length) for n, length in sizes if n * length * shape.bytes_of_slot < MOST_MOVED]
    pool = Pool.of(shape, max(max(n * length for n, length in sizes), LEAST_SLOTS))
    ours = kernel("decode_attention")
    scale = shape.keys**-0.5
    for sequences, length in sizes:
        sides = {
            "flagos": lambda q, *lists: ours(q, pool.k, pool.v, *lists, scale, **pool.scales),
            "sglang": sglang_decode(pool, sequences, length),
            "fa3": fa3_decode(pool, sequences, length),
            "flashinfer": flashinfer_decode(pool, sequences),
        }
        results = sequences * shape.heads * (shape.keys + shape.values) * 2
        yield Cell(
            *("decode_attention", f"{pool.name} context {length}", sequences),
            sequences * length * shape.bytes_of_slot + results,
            lambda sequences=sequences, length=length: (
                random(sequences, shape.heads, shape.keys),
                *pool.lists(sequences, length),
            ),
            sides,
        )


def sglang_decode(pool: Pool, sequences: int, length: int) -> Callable:
    """Return SGLang's kernels, with the workspace that its backend makes once for all layers of a step."""
    from sglang.kernels.ops.attention.decode_attention import decode_attention_fwd
    from sglang.kernels.ops.attention.metadata import get_num_kv_splits_triton
    from sglang.srt.layers.attention.triton_backend import _mla_decode_kv_splits_cap

    shape = pool.shape
    cores = torch.cuda.get_device_properties(0).multi_processor_count
    most = _mla_decode_kv_splits_cap(8, cores, 131072) if shape.is_latent else 8
    partial = torch.empty(sequences, shape.heads, most, shape.values, device="cuda")
    sums = torch.empty(sequences, shape.heads, most, device="cuda")
    splits = torch.empty(sequences, device="cuda", dtype=torch.int32)
    lengths = torch.full((sequences,), length, device="cuda", dtype=torch.int64)
    facts = (sequences, 1, shape.heads, shape.kv_heads, most, cores)
    get_num_kv_splits_triton[(1,)](splits, lengths, *facts, MAX_NUM_SEQ=256)
    workspace = (partial, sums, splits, most, shape.keys**-0.5, 1.0, 1.0)

    def run(q: torch.Tensor, bounds: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        o = q.new_empty(*q.shape[:2], shape.values)
        options = {"has_mla": shape.is_latent, "use_pdl": True}
        decode_attention_fwd(q, pool.k, pool.v, o, bounds, slots, *workspace, **options)
        return o

    return run


def fa3_decode(pool: Pool, sequences: int, length: int) -> Callable:
    """Return FlashAttention 3 as SGLang ships it, by pages of one slot; its table is made beforehand.

    With a pool in FP8 it wants queries in FP8 too, and is left out.
    """
    shape = pool.shape
    lengths = torch.full((sequences,), length, device="cuda", dtype=torch.int32)
    k, v = pool.k.unsqueeze(1), pool.v.unsqueeze(1)

    tables: dict[int, torch.Tensor] = {}

    def run(q: torch.Tensor, bounds: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        if shape.is_eight_bit:
            raise NotImplementedError("measured on pools in 16 bit alone")
        from sgl_kernel.flash_attn import (
            flash_attn_with_kvcache,
        )  # not everywhere: then this side alone fails

        if id(slots) not in tables:
            tables[id(slots)] = slots.view(sequences, length).int()
        options = {
            "cache_seqlens": lengths,
            "page_table": tables[id(slots)],
            "softmax_scale": shape.keys**-0.5,
        }
        if not shape.is_latent:
            return flash_attn_with_kvcache(q.unsqueeze(1), k, v, causal=True, **options)
        of_latent, of_rope = q[:, None].split([shape.values, shape.keys - shape.values], dim=-1)
        rope = k[..., shape.values :]
        return flash_attn_with_kvcache(of_rope, rope, v, qv=of_latent, causal=True, **options)

    return run


def flashinfer_decode(pool: Pool, sequences: int) -> Callable:
    """Return FlashInfer's, by pages of one slot; inputs are planned beforehand, as a server does per step."""
    shape = pool.shape

    planned: dict[int, Callable] = {}

    def plan(bounds: torch.Tensor, slots: torch.Tensor) -> Callable:
        from flashinfer import BatchDecodeWithPagedKVCacheWrapper

        workspace = torch.empty(2**27, device="cuda", dtype=torch.uint8)
        wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
        last = torch.ones(sequences, device="cuda", dtype=torch.int32)
        sizes = (shape.heads, shape.kv_heads, shape.keys, 1)
        dtypes = {"q_data_type": DTYPE, "kv_data_type": pool.k.dtype}
        wrapper.plan(bounds, slots.int(), last, *sizes, **dtypes)
        return wrapper.run

    def run(q: torch.Tensor, bounds: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        if shape.is_latent:
            raise NotImplementedError("not measured on latent attention")
        pools = pool.k.unsqueeze(1), pool.v.unsqueeze(1)
        if id(slots) not in planned:
            planned[id(slots)] = plan(bounds, slots)
        return planned[id(slots)](q, pools)

    return run


def extend_attention(shape: PagedAttention) -> Iterator[Cell]:
    """Yield cells of new tokens of several sequences, each behind a prefix in the pool."""
    yield from extend_cells(shape, list(EXTENDED))


def extend_cells(shape: PagedAttention, sizes: list[tuple[int, ...]]) -> Iterator[Cell]:
    """Yield those of these numbers of sequences, lengths of prefixes and of what is new."""
    pool = Pool.of(shape, max(sequences * prefix for sequences, prefix, _ in sizes) + RUN)
    ours = kernel("extend_attention")
    scale = shape.keys**-0.5
    for sequences, prefix, new in sizes:

        def inputs(sequences: int = sequences, prefix: int = prefix, new: int = new) -> tuple:
            tokens = sequences * new
            k = random(tokens, shape.kv_heads, shape.keys)
            # SGLang's backend passes new values apart, those of latent attention too.
            v = (
                k[..., : shape.values].contiguous()
                if shape.is_latent
                else random(tokens, shape.kv_heads, shape.values)
            )
            starts = torch.arange(sequences + 1, device="cuda") * new
            return random(tokens, shape.heads, shape.keys), k, v, starts, *pool.lists(sequences, prefix)

        sides = {
            "flagos": lambda q, k, v, *lists: ours(q, k, v, pool.k, pool.v, *lists, scale, **pool.scales),
            "sglang": sglang_extend(pool, new),
            "fa3": fa3_extend(pool, prefix, new),
        }
        tokens = sequences * new
        widths = shape.heads * (shape.keys + shape.values) + shape.kv_heads * (shape.keys + shape.values)
        yield Cell(
            *("extend_attention", f"{pool.name} {sequences} x ({prefix} + {new})", tokens),
            sequences * prefix * shape.bytes_of_slot + 2 * tokens * widths,
            inputs,
            sides,
        )


def sglang_extend(pool: Pool, new: int) -> Callable:
    """Return SGLang's kernel."""
    from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd

    shape = pool.shape

    def run(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, *lists: torch.Tensor
    ) -> object:
        o = q.new_empty(*q.shape[:2], shape.values)
        mask = (None, True, None, new, 1.0, 1.0, shape.keys**-0.5)
        extend_attention_fwd(q, k, v, o, pool.k, pool.v, starts, *lists, *mask)
        return o

    return run


def fa3_extend(pool: Pool, prefix: int, new: int) -> Callable:
    """Return FlashAttention 3 where there is no prefix: with one it reads the new tokens from the pool."""
    shape = pool.shape

    def run(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor, *lists: torch.Tensor
    ) -> object:
        if prefix or shape.is_latent:
            raise NotImplementedError("measured without a prefix alone")
        from sgl_kernel.flash_attn import flash_attn_varlen_func

        bounds = starts.int()
        sizes = {"max_seqlen_q": new, "max_seqlen_k": new, "softmax_scale": shape.keys**-0.5}
        return flash_attn_varlen_func(q, k, v, cu_seqlens_q=bounds, cu_seqlens_k=bounds, causal=True, **sizes)

    return run

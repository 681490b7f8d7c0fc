"""The op ``rotary_embedding``: rotary position embedding of query and key, and the write of the KV cache."""

from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Bound, Case, Op, Outputs
from sglang_fl.ops.shared.kv_cache import (
    check_kv_cache,
    kv_cache_sizes,
    sample_kv_cache,
    without_shared_slots,
    write_kv_cache,
)
from sglang_fl.ops.shared.rotation import rotate, rotation_magnitude, sample_cos_sin_cache

__all__ = ["OP", "rotary_embedding"]


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    offsets: Tensor | None = None,
    *,
    value: Tensor | None = None,
    k_buffer: Tensor | None = None,
    v_buffer: Tensor | None = None,
    cache_loc: Tensor | None = None,
) -> Outputs:
    """Rotate the first ``rotary_dim`` elements of each head by its token's position.

    With the four options, the rotated keys and the values are written into the KV cache too.

    Source: Su et al., "RoFormer", 2021; SGLang ``srt/layers/rotary_embedding/base.py``,
    ``RotaryEmbedding.forward_native``; for the options ``kernels/ops/attention/rope.py``,
    ``FusedSetKVBufferArg``.

    Parameters
    ----------
    positions : Tensor, (T,) or any shape of T elements, int32 or int64; not written
    query : Tensor, (T, Hq * head_size) or (T, Hq, head_size), the first axis in place of any that
        hold T elements together; float16, bfloat16, float32 or float64; heads dense, tokens at any
        stride; a kernel may write the result here, where no other argument and no two of its elements
        share its memory
    key : Tensor, likewise with Hk heads; a kernel may write the result here, on the same condition
    cos_sin_cache : Tensor, (P, rotary_dim), any of these dtypes: row p holds rotary_dim / 2
        cosines, then as many sines; not written
    head_size : elements of a head; rotary_dim of them are rotated, the others pass through
    is_neox_style : True pairs element i with i + rotary_dim / 2, False pairs 2 i with 2 i + 1
    offsets : Tensor, shape of ``positions``, or None; added to the positions; not written
    value : Tensor, (T, n) or (T, Hv, n), dtype of ``key``, any strides; not written
    k_buffer : Tensor, (S, Hk * head_size) or (S, Hk, head_size), dtype of ``key``, slots dense and at any
        stride: row ``cache_loc[t]`` is **updated in place** with the rotated key of token t
    v_buffer : Tensor, (S, n) or (S, Hv, n), likewise: with the value of token t
    cache_loc : Tensor, (T,), int32 or int64, the slot of each token; one below 0 says that the token is
        padding, of which nothing is written. What is in one that several tokens name is left open

    Returns
    -------
    (query, key), shapes, dtypes and device as given; products and sum formed in float32 and
    rounded once. Either may be the very tensor that was passed.

    Raises
    ------
    ContractError : query or key is not T rows of whole heads, or rotary_dim is odd or wider
        than a head; some but not all of the options are given, or they do not fit
    """
    rotary_dim = cos_sin_cache.shape[-1]
    if rotary_dim % 2 or rotary_dim > head_size:
        raise ContractError(
            f"rotary_embedding: rotary_dim {rotary_dim} must be even and at most head_size {head_size}"
        )
    if offsets is not None:
        positions = positions + offsets
    rows = cos_sin_cache.index_select(0, positions.flatten())
    writes_cache = check_kv_cache("rotary_embedding", len(rows), key, value, k_buffer, v_buffer, cache_loc)
    rotated = rotate("rotary_embedding", query, key, rows, head_size, is_neox_style)
    if writes_cache:
        write_kv_cache(rotated[1], value, k_buffer, v_buffer, cache_loc)  # type: ignore[arg-type]
    return rotated


def _magnitude(
    truth: Any,
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    offsets: Tensor | None = None,
    cache_loc: Tensor | None = None,
    **cache: Any,
) -> Outputs:
    """Return the size of the two products that each element is the sum of."""
    if offsets is not None:
        positions = positions + offsets
    rows = cos_sin_cache.index_select(0, positions.flatten())
    sizes = rotation_magnitude(query, key, rows, head_size, is_neox_style)
    return (*sizes, *kv_cache_sizes(truth, sizes[1], cache_loc))


def _case(
    name: str,
    tokens: int,
    head_size: int = 64,
    *,
    rotary_dim: int | None = None,
    is_neox_style: bool = True,
    cache_dtype: torch.dtype | None = torch.float32,
    offsets: bool = False,
    three_axes: bool = False,
    packed: bool = False,
    token_axes: tuple[int, ...] | None = None,
    position_dtype: torch.dtype = torch.int64,
    heads: tuple[int, int] = (4, 2),
    kv_cache: dict[str, Any] | None = None,
) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        length = 512
        cache = sample_cos_sin_cache(length, rotary_dim or head_size)
        sizes = [count * head_size for count in heads]
        # Query and key as SGLang's models pass them: slices of one packed projection.
        rows = torch.randn(tokens, sum(sizes) + sizes[1], generator=generator).to(dtype)
        query, key, value = torch.split(rows, [*sizes, sizes[1]], dim=1)
        if not packed:
            query, key = query.contiguous(), key.contiguous()
        cache_options = {} if kv_cache is None else sample_kv_cache(key, value, generator, **kv_cache)
        if three_axes:
            query, key = (x.view(tokens, -1, head_size) for x in (query, key))
        draw = torch.randint(0, length // 2, (2, tokens), generator=generator, dtype=position_dtype)
        if token_axes:
            draw = draw.view(2, *token_axes)
            query, key = (x.view(*token_axes, -1) for x in (query, key))
        arguments: Arguments = {
            "positions": draw[0],
            "query": query,
            "key": key,
            "cos_sin_cache": cache.to(cache_dtype or dtype),
            "head_size": head_size,
            "is_neox_style": is_neox_style,
        }
        return arguments | ({"offsets": draw[1]} if offsets else {}) | cache_options

    return Case(name, make)


def _cases() -> tuple[Case, ...]:
    cases = []
    for is_neox_style in (True, False):
        style = "neox" if is_neox_style else "interleaved"
        cases += [
            _case(f"empty-{style}", 0, is_neox_style=is_neox_style),
            _case(f"one-token-{style}", 1, is_neox_style=is_neox_style),
            _case(f"odd-tokens-{style}", 37, 128, is_neox_style=is_neox_style),
            _case(f"partial-{style}", 9, 80, rotary_dim=32, is_neox_style=is_neox_style),
            _case(f"offsets-{style}", 9, offsets=True, is_neox_style=is_neox_style),
            _case(f"packed-{style}", 9, 128, packed=True, is_neox_style=is_neox_style),
            _case(f"three-axes-{style}", 5, three_axes=True, is_neox_style=is_neox_style),
            _case(f"cache-in-dtype-{style}", 9, cache_dtype=None, is_neox_style=is_neox_style),
            _case(f"two-token-axes-{style}", 6, token_axes=(2, 3), is_neox_style=is_neox_style),
            _case(f"int32-positions-{style}", 9, position_dtype=torch.int32, is_neox_style=is_neox_style),
            _case(f"kv-cache-{style}", 9, packed=True, is_neox_style=is_neox_style, kv_cache={"heads": 2}),
        ]
    return (
        *cases,
        _case("one-head", 3, heads=(1, 1)),
        _case("one-head-cache-in-dtype", 3, cache_dtype=None, heads=(1, 1)),
        _case("head-256", 3, 256),
        *_kv_cache_cases(),
    )


def _kv_cache_cases() -> tuple[Case, ...]:
    return (
        _case("kv-cache-empty", 0, kv_cache={}),
        _case("kv-cache-one-token", 1, 128, packed=True, kv_cache={}),
        _case("kv-cache-partial", 5, 80, rotary_dim=32, packed=True, kv_cache={"padding": 16}),
        _case("kv-cache-offsets", 5, offsets=True, three_axes=True, kv_cache={"loc_dtype": torch.int32}),
        _case("kv-cache-others-not-finite", 7, kv_cache={"heads": 2, "is_poisoned": True}),
        _case("kv-cache-padding", 7, packed=True, kv_cache={"absent": 3}),
        _case("kv-cache-slot-of-several", 7, packed=True, kv_cache={"heads": 2, "shared": 3}),
        _case("kv-cache-interleaved-partial", 5, 80, rotary_dim=48, is_neox_style=False, kv_cache={}),
    )


OP = Op(
    rotary_embedding,
    cases=_cases(),
    # Two float32 products and their sum, rounded once, in units of the two products' size.
    bound=Bound(half=0.55, single=2),
    rows={"positions": -1, "query": 0, "key": 0, "offsets": -1, "value": 0, "cache_loc": 0},
    writes=("query", "key"),
    writes_rows={"k_buffer": "cache_loc", "v_buffer": "cache_loc"},
    updates=("k_buffer", "v_buffer"),
    comparable=without_shared_slots,
    magnitude=_magnitude,
)

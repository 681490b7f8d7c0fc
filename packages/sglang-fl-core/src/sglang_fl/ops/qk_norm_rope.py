"""The op ``qk_norm_rope``: the norms of query and key, their rotation, and the write of the KV cache."""

from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Bound, Case, Op, Outputs, compute_dtype
from sglang_fl.ops.shared.kv_cache import (
    check_kv_cache,
    kv_cache_sizes,
    sample_kv_cache,
    without_shared_slots,
    write_kv_cache,
)
from sglang_fl.ops.shared.rotation import heads_of, rotate, rotation_magnitude, sample_cos_sin_cache

__all__ = ["OP", "qk_norm_rope"]


def qk_norm_rope(
    query: Tensor,
    key: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    positions: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    *,
    add_unit_offset: bool = False,
    value: Tensor | None = None,
    k_buffer: Tensor | None = None,
    v_buffer: Tensor | None = None,
    cache_loc: Tensor | None = None,
) -> Outputs:
    """Norm each head as ``rms_norm`` does, then rotate its first elements as ``rotary_embedding`` does.

    With the last four options, the rotated keys and the values are written into the KV cache too.

    Source: SGLang ``srt/models/qwen3_moe.py``, ``Qwen3MoeAttention.apply_qk_norm_rope``, without the
    rounding between norm and rotation.

    Parameters
    ----------
    query : Tensor, (T, Hq * head_size) or (T, Hq, head_size), float16, bfloat16, float32 or float64; heads
        dense, tokens at any stride; a kernel may write the result here, where no other argument and no two
        of its elements share its memory
    key : Tensor, likewise with Hk heads; a kernel may write the result here, on the same condition
    q_weight, k_weight : Tensors, (head_size,), any of these dtypes; not written
    eps : added to the mean squares
    positions : Tensor, (T,), int32 or int64; not written
    cos_sin_cache : Tensor, (P, rotary_dim), any of these dtypes: row p holds rotary_dim / 2
        cosines, then as many sines; not written
    head_size : elements of a head; rotary_dim of them are rotated, the others are only normed
    is_neox_style : True pairs element i with i + rotary_dim / 2, False pairs 2 i with 2 i + 1
    add_unit_offset : the norms scale by their weight plus 1, as Gemma's do
    value, k_buffer, v_buffer, cache_loc : see ``rotary_embedding``

    Returns
    -------
    (query, key), shapes, dtypes and device as given; formed in float32 and rounded once. Either may be
    the very tensor that was passed.

    Raises
    ------
    ContractError : query or key is not T rows of whole heads, a weight is not one row of a head, rotary_dim
        is odd or wider than a head; some but not all of the last four options are given, or they do not fit
    """
    rows = _rows(query, key, q_weight, k_weight, positions, cos_sin_cache, head_size)
    writes_cache = check_kv_cache("qk_norm_rope", len(rows), key, value, k_buffer, v_buffer, cache_loc)
    normed_query = _normed(query, q_weight, eps, len(rows), head_size, add_unit_offset)
    normed_key = _normed(key, k_weight, eps, len(rows), head_size, add_unit_offset)
    rotated = rotate("qk_norm_rope", normed_query, normed_key, rows, head_size, is_neox_style)
    result = (rotated[0].to(query.dtype).view(query.shape), rotated[1].to(key.dtype).view(key.shape))
    if writes_cache:
        write_kv_cache(result[1], value, k_buffer, v_buffer, cache_loc)  # type: ignore[arg-type]
    return result


def _rows(
    query: Tensor,
    key: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
) -> Tensor:
    """Return the cosines and sines of each token, or raise ``ContractError``."""
    rotary_dim = cos_sin_cache.shape[-1]
    if rotary_dim % 2 or rotary_dim > head_size:
        raise ContractError(
            f"qk_norm_rope: rotary_dim {rotary_dim} must be even and at most head_size {head_size}"
        )
    if positions.dim() != 1:
        raise ContractError(f"qk_norm_rope: positions {tuple(positions.shape)} are not one for each token")
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight.shape != (head_size,):
            raise ContractError(
                f"qk_norm_rope: {name} {tuple(weight.shape)} is no row of a head of {head_size}"
            )
    for name, x in (("query", query), ("key", key)):
        heads_of(f"qk_norm_rope: {name}", x, len(positions), head_size)
    return cos_sin_cache.index_select(0, positions)


def _normed(x: Tensor, weight: Tensor, eps: float, tokens: int, head_size: int, shifted: bool) -> Tensor:
    """Return the heads of ``x`` normed and not rounded, (tokens, heads, head_size)."""
    dtype = compute_dtype(x, weight)
    heads = heads_of("qk_norm_rope", x, tokens, head_size).to(dtype)
    scale = weight.to(dtype) + 1 if shifted else weight.to(dtype)
    return heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + eps) * scale


def _magnitude(
    truth: Any,
    query: Tensor,
    key: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    positions: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    add_unit_offset: bool = False,
    cache_loc: Tensor | None = None,
    **cache: Any,
) -> Outputs:
    """Return the size of the two products that each element is the sum of."""
    rows = cos_sin_cache.index_select(0, positions)
    normed_query = _normed(query, q_weight, eps, len(rows), head_size, add_unit_offset)
    normed_key = _normed(key, k_weight, eps, len(rows), head_size, add_unit_offset)
    sizes = rotation_magnitude(normed_query, normed_key, rows, head_size, is_neox_style)
    key_size = sizes[1].view(key.shape)
    return (sizes[0].view(query.shape), key_size, *kv_cache_sizes(truth, key_size, cache_loc))


def _case(
    name: str,
    tokens: int,
    head_size: int = 64,
    *,
    rotary_dim: int | None = None,
    is_neox_style: bool = True,
    cache_dtype: torch.dtype | None = torch.float32,
    weight_dtype: torch.dtype | None = None,
    three_axes: bool = False,
    packed: bool = True,
    position_dtype: torch.dtype = torch.int64,
    heads: tuple[int, int] = (4, 2),
    eps: float = 1e-6,
    kv_cache: dict[str, Any] | None = None,
    **options: bool,
) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        length = 512
        cache = sample_cos_sin_cache(length, rotary_dim or head_size)
        sizes = [count * head_size for count in heads]
        # As SGLang's models pass them: slices of one packed projection.
        projected = torch.randn(tokens, sum(sizes) + sizes[1], generator=generator).to(dtype)
        query, key, value = torch.split(projected, [*sizes, sizes[1]], dim=1)
        written = {} if kv_cache is None else sample_kv_cache(key, value, generator, **kv_cache)
        if not packed:
            query, key = query.contiguous(), key.contiguous()
        if three_axes:
            query, key = (torch.unflatten(x, 1, (-1, head_size)) for x in (query, key))
        weights = 1 + 0.1 * torch.randn(2, head_size, generator=generator)
        return {
            "query": query,
            "key": key,
            "q_weight": weights[0].to(weight_dtype or dtype),
            "k_weight": weights[1].to(weight_dtype or dtype),
            "eps": eps,
            "positions": torch.randint(0, length, (tokens,), generator=generator, dtype=position_dtype),
            "cos_sin_cache": cache.to(cache_dtype or dtype),
            "head_size": head_size,
            "is_neox_style": is_neox_style,
            **options,
            **written,
        }

    return Case(name, make)


def _cases() -> tuple[Case, ...]:
    cases = []
    for is_neox_style in (True, False):
        style = "neox" if is_neox_style else "interleaved"
        cases += [
            _case(f"empty-{style}", 0, is_neox_style=is_neox_style),
            _case(f"one-token-{style}", 1, 128, is_neox_style=is_neox_style),
            _case(f"odd-tokens-{style}", 37, 128, packed=False, is_neox_style=is_neox_style),
            _case(f"partial-{style}", 9, 80, rotary_dim=32, is_neox_style=is_neox_style),
            _case(f"three-axes-{style}", 5, three_axes=True, is_neox_style=is_neox_style),
            _case(f"kv-cache-{style}", 9, is_neox_style=is_neox_style, kv_cache={"heads": 2}),
        ]
    return (
        *cases,
        _case("cache-in-dtype", 9, cache_dtype=None),
        _case("int32-positions", 9, position_dtype=torch.int32),
        _case("float32-weights", 9, weight_dtype=torch.float32),
        _case("unit-offset", 9, add_unit_offset=True),
        _case("large-eps", 9, eps=1e-1),
        _case("one-head", 3, heads=(1, 1), packed=False),
        _case("odd-heads", 7, heads=(5, 3)),
        _case("head-96", 3, 96),
        _case("head-256", 3, 256),
        _case("kv-cache-empty", 0, kv_cache={}),
        _case("kv-cache-one-token", 1, 128, kv_cache={}),
        _case("kv-cache-partial", 5, 80, rotary_dim=32, kv_cache={"padding": 16}),
        _case("kv-cache-int32", 5, three_axes=True, kv_cache={"loc_dtype": torch.int32}),
        _case("kv-cache-padding", 7, kv_cache={"absent": 3}),
        _case("kv-cache-slot-of-several", 7, kv_cache={"heads": 2, "shared": 3}),
        _case("kv-cache-others-not-finite", 7, heads=(3, 1), kv_cache={"is_poisoned": True}),
        _case(
            "kv-cache-interleaved-partial-unit-offset",
            *(5, 80),
            rotary_dim=48,
            is_neox_style=False,
            add_unit_offset=True,
            kv_cache={},
        ),
    )


OP = Op(
    qk_norm_rope,
    cases=_cases(),
    # As of ``rms_norm``, in units of the two products that each element is the sum of.
    bound=Bound(half=0.55, single=8),
    rows={"query": 0, "key": 0, "positions": 0, "value": 0, "cache_loc": 0},
    writes=("query", "key"),
    writes_rows={"k_buffer": "cache_loc", "v_buffer": "cache_loc"},
    updates=("k_buffer", "v_buffer"),
    comparable=without_shared_slots,
    magnitude=_magnitude,
    may_depend_on_batch=True,
)

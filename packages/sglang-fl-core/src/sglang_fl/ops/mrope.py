"""The op ``mrope``: rotary position embedding by three positions: time, height and width."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Bound, Case, Op, Outputs
from sglang_fl.ops.shared.rotation import rotate, rotation_magnitude, sample_cos_sin_cache

__all__ = ["OP", "lane_axes", "mrope"]


def mrope(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    mrope_section: Sequence[int],
    mrope_interleaved: bool = False,
    *,
    mrope_interleaved_glm: bool = False,
) -> Outputs:
    """Rotate the first ``rotary_dim`` elements of each head by its token's three positions.

    Each pair of elements (lane) is turned by one of the three positions. Without interleaving the first
    ``mrope_section[0]`` lanes belong to time, the next to height, the rest to width.

    Source: Wang et al., "Qwen2-VL", 2024, section 2.1; SGLang ``srt/layers/rotary_embedding/mrope.py``,
    ``MRotaryEmbedding.forward_native`` and ``_build_axis_map``.

    Parameters
    ----------
    positions : Tensor, (3, T), int32 or int64, rows time, height, width; or (T,): all three are the
        same, as for text; not written
    query : Tensor, (T, Hq * head_size), or (T, Hq, head_size); float16, bfloat16, float32 or float64;
        heads dense, tokens at any stride; a kernel may write the result here, where no other argument
        and no two of its elements share its memory
    key : Tensor, likewise with Hk heads; a kernel may write the result here, on the same condition
    cos_sin_cache : Tensor, (P, rotary_dim), any of these dtypes: row p holds rotary_dim / 2
        cosines, then as many sines; not written
    head_size : elements of a head; rotary_dim of them are rotated, the others pass through
    is_neox_style : True pairs element i with i + rotary_dim / 2, False pairs 2 i with 2 i + 1
    mrope_section : the number of lanes of each axis; they add up to rotary_dim / 2
    mrope_interleaved : lanes 1, 4, 7, ... below ``3 * mrope_section[1]`` belong to height, lanes 2, 5,
        8, ... below ``3 * mrope_section[2]`` to width, the others to time
    mrope_interleaved_glm : the lanes go round the three axes; an axis that has had its number is left out

    Returns
    -------
    (query, key), shapes, dtypes and device as given; products and sum formed in float32 and
    rounded once. Either may be the very tensor that was passed.

    Raises
    ------
    ContractError : query or key is not T rows of whole heads, the sections do not add up, or rotary_dim
        is odd or wider than a head
    """
    rows = _rows(positions, cos_sin_cache, head_size, mrope_section, mrope_interleaved, mrope_interleaved_glm)
    return rotate("mrope", query, key, rows, head_size, is_neox_style)


def lane_axes(
    mrope_section: Sequence[int], mrope_interleaved: bool = False, mrope_interleaved_glm: bool = False
) -> list[int]:
    """Return for each lane the axis that it belongs to: 0 time, 1 height, 2 width."""
    lanes = sum(mrope_section)
    if mrope_interleaved_glm:
        axes: list[int] = []
        for lane in range(lanes):
            turn = (lane % 3, (lane + 1) % 3, (lane + 2) % 3)
            axes.append(next(axis for axis in turn if axes.count(axis) < mrope_section[axis]))
        return axes
    if mrope_interleaved:
        return [lane % 3 if lane < 3 * mrope_section[lane % 3] else 0 for lane in range(lanes)]
    return [axis for axis, count in enumerate(mrope_section) for _ in range(count)]


def _rows(
    positions: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    mrope_section: Sequence[int],
    mrope_interleaved: bool,
    mrope_interleaved_glm: bool,
) -> Tensor:
    """Return for each token its cosines and sines, (T, rotary_dim)."""
    rotary_dim = cos_sin_cache.shape[-1]
    if rotary_dim % 2 or rotary_dim > head_size:
        raise ContractError(f"mrope: rotary_dim {rotary_dim} must be even and at most head_size {head_size}")
    if len(mrope_section) != 3 or 2 * sum(mrope_section) != rotary_dim:
        raise ContractError(
            f"mrope: mrope_section {list(mrope_section)} is not three numbers with the sum {rotary_dim // 2}"
        )
    if positions.dim() == 1:
        return cos_sin_cache.index_select(0, positions)
    if positions.dim() != 2 or positions.shape[0] != 3:
        raise ContractError(f"mrope: positions {tuple(positions.shape)} is neither (3, T) nor (T,)")
    axes = lane_axes(mrope_section, mrope_interleaved, mrope_interleaved_glm)
    lane = torch.arange(rotary_dim // 2, device=positions.device)
    where = torch.stack([positions[axis] for axis in axes])  # (lanes, T); no copy from the host's memory
    cos, sin = cos_sin_cache.chunk(2, dim=-1)
    return torch.cat((cos[where, lane[:, None]].T, sin[where, lane[:, None]].T), dim=-1)


def _magnitude(
    truth: Outputs,
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    mrope_section: Sequence[int],
    mrope_interleaved: bool = False,
    *,
    mrope_interleaved_glm: bool = False,
) -> Outputs:
    """Return the size of the two products that each element is the sum of."""
    rows = _rows(positions, cos_sin_cache, head_size, mrope_section, mrope_interleaved, mrope_interleaved_glm)
    return rotation_magnitude(query, key, rows, head_size, is_neox_style)


def _case(
    name: str,
    tokens: int,
    section: tuple[int, int, int],
    head_size: int = 128,
    *,
    is_neox_style: bool = True,
    mode: str = "plain",
    cache_dtype: torch.dtype | None = torch.float32,
    text: bool = False,
    packed: bool = False,
    position_dtype: torch.dtype = torch.int64,
    heads: tuple[int, int] = (4, 2),
) -> Case:
    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        length = 512
        cache = sample_cos_sin_cache(length, 2 * sum(section))
        sizes = [count * head_size for count in heads]
        rows = torch.randn(tokens, sum(sizes) + sizes[1], generator=generator).to(dtype)
        query, key = rows[:, : sizes[0]], rows[:, sizes[0] : sum(sizes)]
        if not packed:
            query, key = query.contiguous(), key.contiguous()
        shape = (tokens,) if text else (3, tokens)
        draw = torch.randint(0, length, shape, generator=generator, dtype=position_dtype)
        arguments: Arguments = {
            "positions": draw,
            "query": query,
            "key": key,
            "cos_sin_cache": cache.to(cache_dtype or dtype),
            "head_size": head_size,
            "is_neox_style": is_neox_style,
            "mrope_section": list(section),
            "mrope_interleaved": mode == "interleaved",
        }
        return arguments | ({"mrope_interleaved_glm": True} if mode == "glm" else {})

    return Case(name, make)


OP = Op(
    mrope,
    cases=(
        _case("empty", 0, (16, 24, 24)),
        _case("one-token", 1, (16, 24, 24)),
        _case("qwen2-vl", 37, (16, 24, 24)),
        _case("qwen3-vl", 37, (24, 20, 20), mode="interleaved"),
        _case("glm", 37, (8, 12, 12), 64, mode="glm"),
        _case("text", 9, (16, 24, 24), text=True),
        _case("text-interleaved", 9, (24, 20, 20), text=True, mode="interleaved"),
        _case("partial", 9, (4, 6, 6), 80),
        _case("pairs", 9, (8, 12, 12), 64, is_neox_style=False),
        _case("pairs-interleaved", 9, (12, 10, 10), 64, is_neox_style=False, mode="interleaved"),
        _case("packed", 9, (16, 24, 24), packed=True),
        _case("cache-in-dtype", 9, (16, 24, 24), cache_dtype=None),
        _case("one-head", 3, (16, 24, 24), cache_dtype=None, heads=(1, 1)),
        _case("int32-positions", 9, (16, 24, 24), position_dtype=torch.int32),
    ),
    # Two float32 products and their sum, rounded once, in units of the two products' size.
    bound=Bound(half=0.55, single=2),
    rows={"positions": -1, "query": 0, "key": 0},
    writes=("query", "key"),
    magnitude=_magnitude,
)

"""All that the tests know of the op ``mrope``."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang_fl.ops import Outputs
from sglang_fl.ops.mrope import mrope
from tests.ops import rotary_embedding
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.shared.rotation import cache, heads
from tests.ops.subject import Arguments, Array, Subject


def formula(
    positions: Array,
    query: Array,
    key: Array,
    cos_sin_cache: Array,
    head_size: int,
    is_neox_style: bool,
    mrope_section: list[int],
    mrope_interleaved: bool = False,
    mrope_interleaved_glm: bool = False,
) -> tuple[Array, ...]:
    """Turn each token by a row of cosines and sines put together lane by lane."""
    if positions.ndim == 1:
        positions = np.stack([positions] * 3)
    lanes = cos_sin_cache.shape[-1] // 2
    axes = np.zeros(lanes, dtype=int)
    if mrope_interleaved_glm:
        left = list(mrope_section)
        for lane in range(lanes):
            axis = lane % 3
            while left[axis] == 0:
                axis = (axis + 1) % 3
            left[axis] -= 1
            axes[lane] = axis
    elif mrope_interleaved:
        for axis in (1, 2):
            axes[axis : 3 * mrope_section[axis] : 3] = axis
    else:
        axes[mrope_section[0] :] = 1
        axes[mrope_section[0] + mrope_section[1] :] = 2
    rows = np.empty((positions.shape[1], 2 * lanes))
    for lane, axis in enumerate(axes):
        rows[:, lane] = cos_sin_cache[positions[axis], lane]
        rows[:, lanes + lane] = cos_sin_cache[positions[axis], lanes + lane]
    each = np.arange(positions.shape[1])
    return rotary_embedding.formula(each, query, key, rows, head_size, is_neox_style)


def draw(source: Source) -> Drawn:
    mode = source.one_of("plain", "interleaved", "glm")
    if mode == "interleaved":  # lanes 1, 4, ... and 2, 5, ... must be there
        part = source.number(1, 4)
        section = [part + source.number(0, 2), part, part]
    else:
        section = [source.number(1, 4) for _ in range(3)]
    tokens, rotary_dim = source.number(0, 6), 2 * sum(section)
    head_size = rotary_dim + source.one_of(0, 0, 1, 6)
    query, key = heads(source, tokens, head_size)
    arguments = {
        "positions": source.integers(40, *source.one_of((3, tokens), (tokens,))),
        "query": query,
        "key": key,
        "cos_sin_cache": cache(source, rotary_dim, 40),
        "head_size": head_size,
        "is_neox_style": source.one_of(True, False),
        "mrope_section": section,
        "mrope_interleaved": mode == "interleaved",
    }
    return Drawn(arguments | ({"mrope_interleaved_glm": True} if mode == "glm" else {}))


def native(arguments: Arguments) -> Any:
    from sglang.srt.layers.rotary_embedding.mrope import MRotaryEmbedding

    # Its forward_native takes no notice of GLM's order of lanes, which its CUDA kernel follows.
    if not arguments["positions"].numel() or "mrope_interleaved_glm" in arguments:
        return None
    rotary_dim = arguments["cos_sin_cache"].shape[-1]
    layer = MRotaryEmbedding(
        *(arguments["head_size"], rotary_dim, 40, 100, arguments["is_neox_style"], torch.float32),
        mrope_section=list(arguments["mrope_section"]),
        mrope_interleaved=arguments["mrope_interleaved"],
    )
    layer.cos_sin_cache = arguments["cos_sin_cache"]
    return layer.forward_native(arguments["positions"], arguments["query"], arguments["key"])


def positions_in_float32(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    mrope_section: Any,
    mrope_interleaved: bool = False,
) -> Outputs:
    rounded = positions.float().to(positions.dtype)
    return mrope(
        rounded, query, key, cos_sin_cache, head_size, is_neox_style, mrope_section, mrope_interleaved
    )


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=native,
    wrong={
        "edges": (positions_in_float32,),
    },
)

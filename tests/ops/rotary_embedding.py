"""All that the tests know of the op ``rotary_embedding``."""

from typing import Any

import numpy as np
import torch

from sglang_fl.ops import Outputs
from sglang_fl.ops.rotary_embedding import rotary_embedding
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.shared.kv_cache import cache_write, draw_cache_write, wrong_writes
from tests.ops.shared.rotation import cache, flat_heads, heads, pairs
from tests.ops.subject import Arguments, Array, Layers, Subject, like


def formula(
    positions: Array,
    query: Array,
    key: Array,
    cos_sin_cache: Array,
    head_size: int,
    is_neox_style: bool,
    offsets: Array | None = None,
    value: Array | None = None,
    k_buffer: Array | None = None,
    v_buffer: Array | None = None,
    cache_loc: Array | None = None,
) -> tuple[Array, ...]:
    """Turn each pair as one complex number."""
    where = (positions if offsets is None else positions + offsets).reshape(-1)
    real, imaginary = pairs(cos_sin_cache.shape[-1], is_neox_style)

    def turn(x: Array) -> Array:
        turned = x.copy().reshape(len(where), -1, head_size) if x.size else x.copy()
        for token, position in enumerate(where):
            cos, sin = np.split(cos_sin_cache[position], 2)
            numbers = (turned[token][:, real] + 1j * turned[token][:, imaginary]) * (cos + 1j * sin)
            turned[token][:, real], turned[token][:, imaginary] = numbers.real, numbers.imag
        return turned.reshape(x.shape)

    turned = turn(key)
    return turn(query), turned, *cache_write(turned, value, k_buffer, v_buffer, cache_loc)


def draw(source: Source) -> Drawn:
    tokens, rotary_dim = source.number(0, 6), 2 * source.number(1, 12)
    head_size = rotary_dim + source.one_of(0, 0, 1, 6)
    query, key = heads(source, tokens, head_size)
    arguments = {
        "positions": source.integers(20, tokens),
        "query": query,
        "key": key,
        "cos_sin_cache": cache(source, rotary_dim, 40),
        "head_size": head_size,
        "is_neox_style": source.one_of(True, False),
    }
    if source.one_of(False, True):
        arguments["offsets"] = source.integers(20, tokens).to(arguments["positions"].dtype)
    return Drawn(arguments | draw_cache_write(source, key))


def native(arguments: Arguments) -> Any:
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

    if not arguments["positions"].numel() or "cache_loc" in arguments:
        return None  # it cannot view a query without tokens, and has no cache to write
    rotary_dim = arguments["cos_sin_cache"].shape[-1]
    facts = (arguments["head_size"], rotary_dim, 40, 100, arguments["is_neox_style"], torch.float32)
    layer = RotaryEmbedding(*facts)
    layer.cos_sin_cache = arguments["cos_sin_cache"]
    return layer.forward_native(*(arguments.get(k) for k in ("positions", "query", "key", "offsets")))


WRONG_WRITES = wrong_writes(rotary_embedding)
(
    cache_not_written,
    keys_cached_as_they_were,
    next_slot_written,
    slots_taken_in_order,
    padding_in_the_last_slot,
) = WRONG_WRITES


@like(rotary_embedding)
def backwards(**given: Any) -> Outputs:
    cos, sin = given["cos_sin_cache"].chunk(2, dim=-1)
    return rotary_embedding(**given | {"cos_sin_cache": torch.cat((cos, -sin), dim=-1)})


@like(rotary_embedding)
def one_style_only(**given: Any) -> Outputs:
    return rotary_embedding(**given | {"is_neox_style": True})


@like(rotary_embedding)
def offsets_ignored(**given: Any) -> Outputs:
    return rotary_embedding(**given | {"offsets": None})


@like(rotary_embedding)
def positions_in_float32(**given: Any) -> Outputs:
    return rotary_embedding(**given | {"positions": given["positions"].float().to(given["positions"].dtype)})


@like(rotary_embedding)
def row_offsets_in_32_bits(**given: Any) -> Outputs:
    width = given["cos_sin_cache"].shape[1]
    wrapped = (given["positions"] * width).to(torch.int32).long().clamp_min(0) // width
    return rotary_embedding(**given | {"positions": wrapped})


@like(rotary_embedding)
def takes_int64_positions_only(**given: Any) -> Outputs:
    assert given["positions"].dtype is torch.int64
    return rotary_embedding(**given)


@like(rotary_embedding)
def key_as_it_was(**given: Any) -> Outputs:
    return rotary_embedding(**given)[0], given["key"].clone()


@like(rotary_embedding)
def one_result_for_both(**given: Any) -> Outputs:
    query, key = rotary_embedding(**given)
    return (query, query) if query.shape == key.shape else (query, key)


@like(rotary_embedding)
def over_its_positions(**given: Any) -> Outputs:
    turned = rotary_embedding(**given)
    given["positions"].add_(1)
    return turned


@like(rotary_embedding)
def over_its_neighbour(**given: Any) -> Outputs:
    turned = rotary_embedding(**given)
    key = given["key"]
    if key.dim() == 2 and key.stride(0) > key.shape[1]:  # a slice of a packed projection: values follow it
        key.as_strided((len(key), key.shape[1] + 1), key.stride(), key.storage_offset())[:, -1] = 0
    return turned


def layers() -> Layers:
    from sglang.srt.layers.rotary_embedding import rope_variant
    from sglang.srt.layers.rotary_embedding.base import LinearScalingRotaryEmbedding, RotaryEmbedding
    from sglang.srt.layers.rotary_embedding.yarn import YaRNScalingRotaryEmbedding

    rotary, yarn = (64, 64, 128, 10000, True), {"scaling_factor": 2.0, "dtype": torch.float32}
    made = (
        RotaryEmbedding(*rotary, torch.float32),
        LinearScalingRotaryEmbedding(*rotary, [2.0], torch.float32),
        rope_variant.DynamicNTKScalingRotaryEmbedding(*rotary, 2.0, torch.float32),
        YaRNScalingRotaryEmbedding(*rotary, **yarn),
        rope_variant.Llama3RotaryEmbedding(*rotary, torch.float32, 8.0, 1.0, 4.0, 64),
    )
    latent = rope_variant.DeepseekScalingRotaryEmbedding(64, 64, 128, 10000, False, **yarn, device="cpu")
    three = (torch.arange(3), torch.randn(3, 2, 64), torch.randn(3, 1, 64))
    return {
        **{type(layer).__name__: (layer, flat_heads(torch.arange(3))) for layer in made},
        "DeepseekScalingRotaryEmbedding": (latent, three),
    }


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=native,
    layers=layers,
    wrong={
        "cases": (
            backwards,
            one_style_only,
            offsets_ignored,
            takes_int64_positions_only,
            key_as_it_was,
            one_result_for_both,
            over_its_positions,
            over_its_neighbour,
            *WRONG_WRITES,
        ),
        "edges": (
            positions_in_float32,
            row_offsets_in_32_bits,
        ),
    },
)

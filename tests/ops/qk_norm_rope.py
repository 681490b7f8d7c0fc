"""All that the tests know of the op ``qk_norm_rope``."""

from typing import Any

import numpy as np
import torch

from sglang_fl.ops import KV_CACHE, Outputs
from sglang_fl.ops.qk_norm_rope import qk_norm_rope
from sglang_fl.ops.rms_norm import rms_norm
from sglang_fl.ops.rotary_embedding import rotary_embedding
from tests.ops.shared.drawing import Drawn, Source
from tests.ops.shared.kv_cache import cache_write, draw_cache_write, wrong_writes
from tests.ops.shared.rotation import cache, heads, pairs
from tests.ops.subject import Arguments, Array, Subject, like


def formula(
    query: Array,
    key: Array,
    q_weight: Array,
    k_weight: Array,
    eps: float,
    positions: Array,
    cos_sin_cache: Array,
    head_size: int,
    is_neox_style: bool,
    add_unit_offset: bool = False,
    value: Array | None = None,
    k_buffer: Array | None = None,
    v_buffer: Array | None = None,
    cache_loc: Array | None = None,
) -> tuple[Array, ...]:
    """Norm each head, then turn each pair as one complex number."""
    real, imaginary = pairs(cos_sin_cache.shape[-1], is_neox_style)

    def turn(x: Array, weight: Array) -> Array:
        turned = x.copy().reshape(len(positions), -1, head_size) if x.size else x.copy()
        for token, position in enumerate(positions):
            for head in turned[token]:
                head /= np.sqrt(np.mean(head**2) + eps)
                head *= weight + add_unit_offset
            cos, sin = np.split(cos_sin_cache[position], 2)
            numbers = (turned[token][:, real] + 1j * turned[token][:, imaginary]) * (cos + 1j * sin)
            turned[token][:, real], turned[token][:, imaginary] = numbers.real, numbers.imag
        return turned.reshape(x.shape)

    turned = turn(key, k_weight)
    cached = cache_write(turned, value, k_buffer, v_buffer, cache_loc)
    return turn(query, q_weight), turned, *cached


def draw(source: Source) -> Drawn:
    tokens, rotary_dim = source.number(0, 6), 2 * source.number(1, 12)
    head_size = rotary_dim + source.one_of(0, 0, 1, 6)
    query, key = heads(source, tokens, head_size)
    weight_dtype = source.one_of(torch.float32, source.dtype)
    arguments = {
        "query": query,
        "key": key,
        "q_weight": (1 + source.normal(head_size, scale=0.1)).to(weight_dtype),
        "k_weight": (1 + source.normal(head_size, scale=0.1)).to(weight_dtype),
        "eps": source.one_of(1e-6, 1e-2),
        "positions": source.integers(20, tokens),
        "cos_sin_cache": cache(source, rotary_dim, 40),
        "head_size": head_size,
        "is_neox_style": source.one_of(True, False),
    }
    if source.one_of(False, True):
        arguments["add_unit_offset"] = True
    return Drawn(arguments | draw_cache_write(source, key))


def native(arguments: Arguments) -> Any:
    """Run SGLang's two layers, which round between norm and rotation."""
    from sglang.srt.layers.layernorm import GemmaRMSNorm, RMSNorm
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

    if not arguments["positions"].numel() or "cache_loc" in arguments:
        return None
    head_size, rotary_dim = arguments["head_size"], arguments["cos_sin_cache"].shape[-1]
    rotary = RotaryEmbedding(head_size, rotary_dim, 40, 100, arguments["is_neox_style"], torch.float32)
    rotary.cos_sin_cache = arguments["cos_sin_cache"]
    norm_class = GemmaRMSNorm if arguments.get("add_unit_offset") else RMSNorm

    def normed(name: str) -> torch.Tensor:
        norm, x = norm_class(head_size, arguments["eps"]), arguments[name]
        norm.weight.data = arguments[f"{name[0]}_weight"]
        return norm.forward_native(x.reshape(-1, head_size).contiguous()).to(x.dtype).view(x.shape)

    return rotary.forward_native(arguments["positions"], normed("query"), normed("key"))


WRONG_WRITES = wrong_writes(qk_norm_rope)
(
    cache_not_written,
    keys_cached_as_they_were,
    next_slot_written,
    slots_taken_in_order,
    padding_in_the_last_slot,
) = WRONG_WRITES


@like(qk_norm_rope)
def rounds_between(**given: Any) -> Outputs:
    """As SGLang's two layers do, one after the other."""

    def normed(name: str) -> torch.Tensor:
        x, weight = given[name], given[f"{name[0]}_weight"].float() + given.get("add_unit_offset", False)
        return rms_norm(x.reshape(-1, given["head_size"]), weight, given["eps"]).to(x.dtype).view(x.shape)

    facts = (given["cos_sin_cache"], given["head_size"], given["is_neox_style"])
    written = {name: given[name] for name in KV_CACHE if name in given}
    return rotary_embedding(given["positions"], normed("query"), normed("key"), *facts, **written)


@like(qk_norm_rope)
def rotates_first(**given: Any) -> Outputs:
    """The weight is multiplied after the rotation."""
    ones = torch.ones_like(given["q_weight"])
    weights = {name: given[name].float() for name in ("q_weight", "k_weight")}
    results = qk_norm_rope(**given | {"q_weight": ones, "k_weight": ones, "add_unit_offset": False})
    shift = 1.0 if given.get("add_unit_offset") else 0.0

    def scaled(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        heads = x.float().reshape(-1, given["head_size"]) * (weight + shift)
        return heads.to(x.dtype).view(x.shape)

    return scaled(results[0], weights["q_weight"]), scaled(results[1], weights["k_weight"])


@like(qk_norm_rope)
def weights_swapped(**given: Any) -> Outputs:
    return qk_norm_rope(**given | {"q_weight": given["k_weight"], "k_weight": given["q_weight"]})


@like(qk_norm_rope)
def eps_forgotten(**given: Any) -> Outputs:
    return qk_norm_rope(**given | {"eps": 0.0})


@like(qk_norm_rope)
def offset_forgotten(**given: Any) -> Outputs:
    return qk_norm_rope(**given | {"add_unit_offset": False})


@like(qk_norm_rope)
def one_style_only(**given: Any) -> Outputs:
    return qk_norm_rope(**given | {"is_neox_style": True})


@like(qk_norm_rope)
def over_its_weight(**given: Any) -> Outputs:
    results = qk_norm_rope(**given)
    given["q_weight"].add_(1)
    return results


@like(qk_norm_rope)
def positions_in_float32(**given: Any) -> Outputs:
    return qk_norm_rope(**given | {"positions": given["positions"].float().to(given["positions"].dtype)})


SUBJECT = Subject(
    formula=formula,
    draw=draw,
    native=native,
    wrong={
        "cases": (
            rounds_between,
            rotates_first,
            weights_swapped,
            eps_forgotten,
            offset_forgotten,
            one_style_only,
            over_its_weight,
            *WRONG_WRITES,
        ),
        "edges": (positions_in_float32,),
    },
)

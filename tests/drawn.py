"""Arguments of each op, drawn by hypothesis: shapes, strides, dtypes and options; values from a seed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from sglang_fl.ops import OPS, Bound
from sglang_fl.ops.shared.norm import THREE_TERMS

__all__ = ["DRAWN", "Drawn"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
#: Two roundings of the dtype; and one of 8 bits in a float32 result, 2**16 of its units.
TWICE, ROUNDED_TO_8_BITS = Bound(half=1.1, single=8), Bound(half=1.1, single=0.55 * 2**16)

Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Drawn:
    """One call of an op.

    Parameters
    ----------
    arguments : by name
    bound : where its options round more often than the op does otherwise
    """

    arguments: dict[str, Any]
    bound: Bound | None = None


class Source:
    """Draws a call: what hypothesis shall vary and shrink, and numbers from a generator that it seeds."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self._random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
        self.dtype: torch.dtype = draw(st.sampled_from(DTYPES))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def one_of(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=self._random)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._random)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(
            0, high, shape, generator=self._random, dtype=self.one_of(torch.int32, torch.int64)
        )

    def rows(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor whose rows are dense, and lie at some stride."""
        padding = self.one_of(0, 0, 1, 8)
        wide = self.normal(*shape[:-1], shape[-1] + padding, scale=scale).to(dtype or self.dtype)
        return wide[..., : shape[-1]]

    def strided(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Return a tensor of any strides."""
        layout = self.one_of("dense", "rows", "columns", "every-second")
        if layout == "columns" and len(shape) > 1:
            return self.normal(*shape[:-2], shape[-1], shape[-2], scale=scale).to(self.dtype).mT
        if layout == "every-second":
            return self.normal(*shape[:-1], 2 * shape[-1], scale=scale).to(self.dtype)[..., ::2]
        return self.rows(*shape, scale=scale)

    def shape(self, width: int) -> tuple[int, ...]:
        return (*(self.number(0, 5) for _ in range(self.number(0, 2))), width)

    def scale(self) -> float:
        return self.one_of(1e-3, 0.25, 1.0, 4.0)


def gated(source: Source) -> Drawn:
    x = source.strided(*source.shape(2 * source.number(1, 40)), scale=source.scale())
    return Drawn({"x": x})


def gelu_and_mul(source: Source) -> Drawn:
    return Drawn(gated(source).arguments | {"approximate": source.one_of("tanh", "none")})


def situ_and_mul(source: Source) -> Drawn:
    betas = {"beta": source.one_of(1.0, 4.0), "linear_beta": source.one_of(None, 2.0, 25.0)}
    return Drawn(gated(source).arguments | betas)


def pointwise(source: Source) -> Drawn:
    return Drawn({"x": source.strided(*source.shape(source.number(1, 80)), scale=source.scale())})


def norm(source: Source, centre: float) -> tuple[dict[str, Any], Bound | None]:
    """Return what all norms take: perhaps a residual, perhaps a third summand."""
    shape = source.shape(source.number(1, 96))
    weight = (centre + source.normal(shape[-1], scale=0.1)).to(source.one_of(source.dtype, torch.float32))
    scale = source.one_of(0.25, 1.0, 4.0)
    arguments = {
        "x": source.strided(*shape, scale=scale),
        "weight": weight,
        "eps": source.one_of(1e-6, 1e-2),
    }
    summands = source.number(0, 2)
    for name in ("residual", "post_residual_addition")[:summands]:
        arguments[name] = source.strided(*shape, scale=scale)
    return arguments, THREE_TERMS if summands == 2 else None


def rms_norm(source: Source) -> Drawn:
    arguments, bound = norm(source, 1.0)
    width = arguments["weight"].shape[0]
    if source.one_of(False, True):
        arguments["variance_size_override"] = source.number(1, width)
    if "residual" in arguments and source.one_of(False, True):
        arguments["fp32_residual"] = True
    if "post_residual_addition" not in arguments and source.one_of(False, True):
        arguments["cast_x_before_out_mul"] = True
        same = arguments["weight"].dtype is source.dtype
        bound = TWICE if same else ROUNDED_TO_8_BITS
    return Drawn(arguments, bound)


def gemma_rms_norm(source: Source) -> Drawn:
    return Drawn(*norm(source, 0.0))


def layer_norm(source: Source) -> Drawn:
    shape = source.shape(source.number(2, 96))

    def parameter(centre: float) -> Tensor | None:
        if source.one_of(False, True):
            return None
        return (centre + source.normal(shape[-1], scale=0.1)).to(source.one_of(source.dtype, torch.float32))

    x = source.strided(*shape, scale=source.one_of(0.25, 1.0, 4.0))
    eps = source.one_of(1e-6, 1e-2)
    return Drawn({"x": x, "weight": parameter(1.0), "bias": parameter(0.0), "eps": eps})


def cache(source: Source, width: int, length: int) -> Tensor:
    angles = torch.outer(torch.arange(length), 100.0 ** -torch.linspace(0, 1, width // 2))
    made = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return made.to(source.one_of(torch.float32, source.dtype))


def heads(source: Source, tokens: int, head_size: int) -> tuple[Tensor, Tensor]:
    """Return query and key: each by itself, or both out of one projection; with an axis of heads or not."""
    counts = source.number(1, 3), source.number(1, 2)
    sizes = [count * head_size for count in counts]
    if source.one_of(False, True):
        query, key = source.rows(tokens, sum(sizes)).split(sizes, dim=-1)
    else:
        query, key = (source.rows(tokens, size) for size in sizes)
    if source.one_of(False, True):
        return query.unflatten(-1, (counts[0], head_size)), key.unflatten(-1, (counts[1], head_size))
    return query, key


def rotary_embedding(source: Source) -> Drawn:
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
    return Drawn(arguments)


def mrope(source: Source) -> Drawn:
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


def routing(source: Source) -> Drawn:
    """Return logits that no rounding brings into another order: each row permutes the same levels."""
    groups = source.one_of(None, 2, 4)
    experts = (groups or 1) * source.number(2, 8)
    kept = groups and source.number(1, groups)
    eligible = experts // groups * kept if groups and kept else experts
    ranks = source.uniform(source.number(0, 6), experts).argsort(-1)
    arguments: dict[str, Any] = {
        "router_logits": torch.linspace(-2, 2, experts)[ranks].to(source.dtype),
        "top_k": source.number(1, eligible),
        "renormalize": source.one_of(False, True),
        "routed_scaling_factor": source.one_of(1.0, 2.5),
    }
    if groups:
        arguments |= {"num_expert_group": groups, "topk_group": kept}
    if source.one_of(False, True):
        arguments["correction_bias"] = 0.3 * source.normal(experts)
    return Drawn(arguments)


def fused_moe(source: Source) -> Drawn:
    tokens, experts = source.number(0, 6), source.number(1, 5)
    width, inner, top_k = source.number(1, 24), source.number(1, 12), source.number(1, experts)
    ids = source.uniform(tokens, experts).argsort(-1)[:, :top_k]
    absent = source.uniform(tokens, top_k) < source.one_of(0.0, 0.4)
    weights = source.uniform(tokens, top_k).softmax(-1)
    arguments = {
        "hidden_states": source.rows(tokens, width),
        "w13_weight": source.normal(experts, 2 * inner, width, scale=width**-0.5).to(source.dtype),
        "w2_weight": source.normal(experts, width, inner, scale=inner**-0.5).to(source.dtype),
        "topk_weights": weights.to(source.one_of(torch.float32, source.dtype)),
        "topk_ids": ids.masked_fill(absent, -1).to(source.one_of(torch.int32, torch.int64)),
    }
    if source.one_of(False, True):
        arguments["routed_scaling_factor"] = 2.5
    if top_k == 1 and source.one_of(False, True):
        arguments["apply_router_weight_on_input"] = True
    return Drawn(arguments)


def states(source: Source, sequences: int, value_heads: int, values: int, keys: int) -> dict[str, Any]:
    """Return a pool of states, at some stride, and the row of each sequence, or none."""
    slots = sequences + source.number(0, 3)
    pool = source.normal(slots, value_heads + source.one_of(0, 2), values, keys, scale=0.1)
    indices = source.uniform(slots).argsort()[:sequences]
    absent = source.uniform(sequences) < source.one_of(0.0, 0.4)
    return {
        "initial_state": pool.to(source.one_of(torch.float32, source.dtype))[:, :value_heads],
        "initial_state_indices": indices.masked_fill(absent, -1).to(source.one_of(torch.int32, torch.int64)),
        "scale": keys**-0.5,
    }


def sizes_of_states(source: Source) -> tuple[int, int, int, int]:
    query_heads = source.number(1, 2)
    return query_heads, query_heads * source.number(1, 2), source.number(1, 8), source.number(2, 8)


def sequences(source: Source, longest: int) -> tuple[int, Tensor]:
    lengths = [source.number(0, longest) for _ in range(source.number(0, 3))]
    return len(lengths), torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def chunk_gated_delta_rule(source: Source) -> Drawn:
    query_heads, value_heads, values, keys = sizes_of_states(source)
    count, bounds = sequences(source, source.one_of(4, 70))
    tokens = int(bounds[-1])
    beta = torch.sigmoid(source.normal(1, tokens, value_heads))
    return Drawn(
        {
            "q": source.rows(1, tokens, query_heads, keys),
            "k": source.rows(1, tokens, query_heads, keys),
            "v": source.rows(1, tokens, value_heads, values),
            "g": torch.nn.functional.logsigmoid(3 + source.normal(1, tokens, value_heads)),
            "beta": beta.to(source.one_of(torch.float32, source.dtype)),
            "cu_seqlens": bounds,
            **states(source, count, value_heads, values, keys),
        }
    )


def fused_sigmoid_gating_delta_rule_update(source: Source) -> Drawn:
    query_heads, value_heads, values, keys = sizes_of_states(source)
    count, bounds = sequences(source, 4)
    tokens = int(bounds[-1])
    return Drawn(
        {
            "A_log": source.normal(value_heads),
            "a": source.rows(tokens, value_heads),
            "dt_bias": source.normal(value_heads).to(source.one_of(torch.float32, source.dtype)),
            "q": source.rows(1, tokens, query_heads, keys),
            "k": source.rows(1, tokens, query_heads, keys),
            "v": source.rows(1, tokens, value_heads, values),
            "b": source.rows(tokens, value_heads),
            "cu_seqlens": bounds,
            **states(source, count, value_heads, values, keys),
        }
    )


def fused_recurrent_gated_delta_rule_packed_decode(source: Source) -> Drawn:
    query_heads, value_heads, values, keys = sizes_of_states(source)
    batch = source.number(0, 5)
    return Drawn(
        {
            "mixed_qkv": source.rows(batch, 2 * query_heads * keys + value_heads * values),
            "a": source.rows(batch, value_heads),
            "b": source.rows(batch, value_heads),
            "A_log": source.normal(value_heads),
            "dt_bias": source.normal(value_heads).to(source.one_of(torch.float32, source.dtype)),
            **states(source, batch, value_heads, values, keys),
        }
    )


_MAKERS: dict[str, Callable[[Source], Drawn]] = {
    "silu_and_mul": gated,
    "gelu_and_mul": gelu_and_mul,
    "situ_and_mul": situ_and_mul,
    **dict.fromkeys(("new_gelu", "quick_gelu", "relu2"), pointwise),
    "rms_norm": rms_norm,
    "gemma_rms_norm": gemma_rms_norm,
    "layer_norm": layer_norm,
    "rotary_embedding": rotary_embedding,
    "mrope": mrope,
    **dict.fromkeys(("topk_softmax", "topk_sigmoid"), routing),
    "fused_moe": fused_moe,
    "chunk_gated_delta_rule": chunk_gated_delta_rule,
    "fused_sigmoid_gating_delta_rule_update": fused_sigmoid_gating_delta_rule_update,
    "fused_recurrent_gated_delta_rule_packed_decode": fused_recurrent_gated_delta_rule_packed_decode,
}


@st.composite
def _calls(draw: Draw, make: Callable[[Source], Drawn]) -> Drawn:
    return make(Source(draw))


#: A strategy for calls of each op.
DRAWN: dict[str, st.SearchStrategy[Drawn]] = {name: _calls(_MAKERS[name]) for name in OPS}

"""The ops once more, as float64 formulas written apart from the references, and the distance from them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang_fl.conformance import error_in_units
from sglang_fl.ops import OPS, Bound, Op

__all__ = ["FORMULAS", "as_numpy", "as_tuple", "errors", "pairs"]

Array = np.ndarray


def silu_and_mul(x: Array) -> tuple[Array, ...]:
    d = x.shape[-1] // 2
    gate, up = x[..., :d], x[..., d:]
    return (gate / (1 + np.exp(-gate)) * up,)


def rotary_embedding(
    positions: Array,
    query: Array,
    key: Array,
    cos_sin_cache: Array,
    head_size: int,
    is_neox_style: bool,
    offsets: Array | None = None,
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

    return turn(query), turn(key)


def pairs(rotary_dim: int, is_neox_style: bool) -> tuple[Array, Array]:
    count = np.arange(rotary_dim // 2)
    return (count, count + rotary_dim // 2) if is_neox_style else (2 * count, 2 * count + 1)


def gelu_and_mul(x: Array, approximate: str = "tanh") -> tuple[Array, ...]:
    d = x.shape[-1] // 2
    return (gelu(x[..., :d], approximate) * x[..., d:],)


def gelu(x: Array, approximate: str) -> Array:
    if approximate == "none":
        return x * 0.5 * np.vectorize(math.erfc, otypes=[float])(-x / math.sqrt(2))
    # 1 + tanh(u) = 2 / (1 + exp(-2 u)), which does not cancel
    return x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def situ_and_mul(x: Array, beta: float, linear_beta: float | None = None) -> tuple[Array, ...]:
    d = x.shape[-1] // 2
    gate, up = x[..., :d], x[..., d:]
    if linear_beta is not None:
        up = np.tanh(up / linear_beta) * linear_beta
    return (np.tanh(gate / beta) * beta / (1 + np.exp(-gate)) * up,)


def new_gelu(x: Array) -> tuple[Array, ...]:
    return (gelu(x, "tanh"),)


def quick_gelu(x: Array) -> tuple[Array, ...]:
    return (x / (1 + np.exp(-1.702 * x)),)


def relu2(x: Array) -> tuple[Array, ...]:
    return (np.where(x > 0, x, 0) ** 2,)


def rms_norm(
    x: Array,
    weight: Array,
    eps: float,
    residual: Array | None = None,
    post_residual_addition: Array | None = None,
    variance_size_override: int | None = None,
    cast_x_before_out_mul: bool = False,
    fp32_residual: bool = False,
) -> tuple[Array, ...]:
    total = x if residual is None else x + residual
    total = total if post_residual_addition is None else total + post_residual_addition
    counted = total[..., :variance_size_override]
    root = np.sqrt(np.sum(counted**2, axis=-1, keepdims=True) / counted.shape[-1] + eps)
    return (weight * total / root,) if residual is None else (weight * total / root, total)


def gemma_rms_norm(x: Array, weight: Array, eps: float, *rest: Any, **options: Any) -> tuple[Array, ...]:
    return rms_norm(x, weight + 1, eps, *rest, **options)


def layer_norm(x: Array, weight: Array | None, bias: Array | None, eps: float) -> tuple[Array, ...]:
    mean, variance = np.mean(x, axis=-1, keepdims=True), np.var(x, axis=-1, keepdims=True)
    scale = 1.0 if weight is None else weight
    return ((x - mean) / np.sqrt(variance + eps) * scale + (0.0 if bias is None else bias),)


def mrope(
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
    return rotary_embedding(each, query, key, rows, head_size, is_neox_style)


def route(
    scores: Array,
    top_k: int,
    renormalize: bool,
    correction_bias: Array | None,
    num_expert_group: int | None,
    topk_group: int | None,
    routed_scaling_factor: float,
) -> tuple[Array, ...]:
    """Choose token by token, by sorting."""
    weights, ids = np.zeros((len(scores), top_k)), np.zeros((len(scores), top_k), dtype=np.int32)
    for token, row in enumerate(scores):
        choice = row if correction_bias is None else row + correction_bias
        allowed = np.arange(len(row))
        if num_expert_group is not None:
            groups = np.split(allowed, num_expert_group)
            best = 1 if correction_bias is None else 2
            worth = [np.sort(choice[group])[-best:].sum() for group in groups]
            allowed = np.concatenate([groups[i] for i in np.argsort(worth)[-topk_group:]])
        chosen = np.sort(allowed[np.argsort(choice[allowed])[-top_k:]])
        share = row[chosen] / (row[chosen].sum() + 1e-20 if renormalize else 1.0)
        weights[token], ids[token] = share * routed_scaling_factor, chosen
    return weights, ids


def topk_softmax(
    router_logits: Array,
    top_k: int,
    renormalize: bool,
    correction_bias: Array | None = None,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
    routed_scaling_factor: float = 1.0,
) -> tuple[Array, ...]:
    powers = np.exp(router_logits)
    scores = powers / powers.sum(axis=-1, keepdims=True)
    groups = (num_expert_group, topk_group, routed_scaling_factor)
    return route(scores, top_k, renormalize, correction_bias, *groups)


def topk_sigmoid(
    router_logits: Array,
    top_k: int,
    renormalize: bool,
    correction_bias: Array | None = None,
    num_expert_group: int | None = None,
    topk_group: int | None = None,
    routed_scaling_factor: float = 1.0,
) -> tuple[Array, ...]:
    groups = (num_expert_group, topk_group, routed_scaling_factor)
    return route(1 / (1 + np.exp(-router_logits)), top_k, renormalize, correction_bias, *groups)


def fused_moe(
    hidden_states: Array,
    w13_weight: Array,
    w2_weight: Array,
    topk_weights: Array,
    topk_ids: Array,
    apply_router_weight_on_input: bool = False,
    routed_scaling_factor: float = 1.0,
) -> tuple[Array, ...]:
    """Go token by token through its experts."""
    result = np.zeros_like(hidden_states)
    for token, x in enumerate(hidden_states):
        for share, expert in zip(topk_weights[token], topk_ids[token], strict=True):
            if not 0 <= expert < len(w13_weight):
                continue
            inner, outer = (share, 1.0) if apply_router_weight_on_input else (1.0, share)
            (active,) = silu_and_mul(w13_weight[expert] @ (x * inner))
            result[token] += outer * (w2_weight[expert] @ active)
    return (result * routed_scaling_factor,)


def delta_rule(
    q: Array, k: Array, v: Array, decay: Array, beta: Array, state: Array
) -> tuple[Array, list[Array], Array]:
    """Run one sequence: (T, H, K), (T, HV, V), (T, HV) and (HV, V, K); head by head, as sums."""
    state, before, out = state.copy(), [], np.zeros(v.shape)
    for token in range(len(q)):
        if token % 64 == 0:
            before.append(state.copy())
        for head in range(v.shape[1]):
            shared = head // (v.shape[1] // k.shape[1])
            unit_q, unit_k = (
                x[token, shared] / np.sqrt((x[token, shared] ** 2).sum() + 1e-6) for x in (q, k)
            )
            kept = state[head] * decay[token, head]
            wrong = v[token, head] - kept @ unit_k
            state[head] = kept + beta[token, head] * np.outer(wrong, unit_k)
            out[token, head] = state[head] @ unit_q
    return out, before, state


def run_sequences(q: Array, k: Array, v: Array, decay: Array, beta: Array, pool: Array, given: Any) -> Any:
    indices, bounds, scale = given
    pool, out, before = pool.copy(), np.zeros(v.shape), []
    for number, index in enumerate(indices):
        at = slice(bounds[number], bounds[number + 1])
        start = pool[index] if index >= 0 else np.zeros(pool.shape[1:])
        o, states, last = delta_rule(q[at], k[at], v[at], decay[at], beta[at], start)
        before += states
        if index >= 0:
            pool[index], out[at] = last, o * scale
    empty = np.zeros((0, *pool.shape[1:]))
    return out, np.stack(before) if before else empty, pool


def chunk_gated_delta_rule(
    q: Array,
    k: Array,
    v: Array,
    g: Array,
    beta: Array,
    initial_state: Array,
    initial_state_indices: Array,
    cu_seqlens: Array,
    scale: float,
) -> tuple[Array, ...]:
    given = (initial_state_indices, cu_seqlens, scale)
    out, before, pool = run_sequences(q[0], k[0], v[0], np.exp(g[0]), beta[0], initial_state, given)
    return out[None], before[None], pool


def formed_gates(A_log: Array, a: Array, dt_bias: Array, b: Array) -> tuple[Array, Array]:
    """Return decay and learning rate: exp(-exp(A_log) softplus(x)) = (1 + exp(x)) ** -exp(A_log)."""
    return (1 + np.exp(a + dt_bias)) ** -np.exp(A_log), 1 / (1 + np.exp(-b))


def fused_sigmoid_gating_delta_rule_update(
    A_log: Array,
    a: Array,
    dt_bias: Array,
    q: Array,
    k: Array,
    v: Array,
    b: Array,
    initial_state: Array,
    initial_state_indices: Array,
    cu_seqlens: Array,
    scale: float,
) -> tuple[Array, ...]:
    given = (initial_state_indices, cu_seqlens, scale)
    out, _, pool = run_sequences(q[0], k[0], v[0], *formed_gates(A_log, a, dt_bias, b), initial_state, given)
    return out[None], pool


def fused_recurrent_gated_delta_rule_packed_decode(
    mixed_qkv: Array,
    a: Array,
    b: Array,
    A_log: Array,
    dt_bias: Array,
    initial_state: Array,
    initial_state_indices: Array,
    scale: float,
) -> tuple[Array, ...]:
    batch, (_, heads, values, keys) = len(mixed_qkv), initial_state.shape
    width = (mixed_qkv.shape[1] - heads * values) // 2
    q, k, v = np.split(mixed_qkv, [width, 2 * width], axis=1)
    q, k, v = (x.reshape(batch, x.shape[1] // size, size) for x, size in ((q, keys), (k, keys), (v, values)))
    given = (initial_state_indices, np.arange(batch + 1), scale)
    out, _, pool = run_sequences(q, k, v, *formed_gates(A_log, a, dt_bias, b), initial_state, given)
    return out, pool


FORMULAS: dict[str, Callable[..., tuple[Array, ...]]] = {name: globals()[name] for name in OPS}


def as_numpy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return (value.double() if value.is_floating_point() else value).numpy()


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def in_float64(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def errors(op: Op, arguments: dict[str, Any], bound: Bound | None = None) -> list[str]:
    """Say where the reference is outside of its bound against the formula."""
    formed = FORMULAS[op.name](**{name: as_numpy(value) for name, value in arguments.items()})
    tensors = [torch.from_numpy(np.asarray(result)) for result in formed]
    count = len(tensors) - len(op.updates)
    # The formula returns what the reference updates in place.
    exact = in_float64(arguments) | dict(zip(op.updates, tensors[count:], strict=True))
    truths = op.results(tuple(tensors[:count]), exact)
    sizes = as_tuple(op.magnitude(truths, **exact)) if op.magnitude else truths
    results = op.results(op.reference(**arguments), arguments)
    return [
        f"result {index}: {found}"
        for index, (result, truth, size) in enumerate(zip(results, truths, sizes, strict=True))
        if (found := difference(result, truth, size, bound or op.bound))
    ]


def difference(result: Tensor, truth: Tensor, size: Tensor, bound: Bound) -> str:
    if result.shape != truth.shape:
        return f"{tuple(result.shape)} instead of {tuple(truth.shape)}"
    if not result.is_floating_point():
        return "" if torch.equal(result.long(), truth.long()) else "other ids"
    error = error_in_units(result, truth, size)
    return f"{error} units" if error > bound.of(result.dtype) else ""

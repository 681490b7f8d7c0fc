"""The ops: each reference against float64 formulas written here anew, and what an op says of itself."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sglang_fl.conformance import error_in_units
from sglang_fl.errors import ContractError, VendorError
from sglang_fl.ops import OPS, Bound, Case, Op
from sglang_fl.vendor import load_target

CASES = [pytest.param(op, case, id=f"{op}-{case}") for op in OPS.values() for case in op.cases]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
# The references, called with float64, are the truth that kernels are held against.
ALL_DTYPES = [*DTYPES, torch.float64]

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
    real, imaginary = _pairs(cos_sin_cache.shape[-1], is_neox_style)

    def turn(x: Array) -> Array:
        turned = x.copy().reshape(len(where), -1, head_size) if x.size else x.copy()
        for token, position in enumerate(where):
            cos, sin = np.split(cos_sin_cache[position], 2)
            numbers = (turned[token][:, real] + 1j * turned[token][:, imaginary]) * (cos + 1j * sin)
            turned[token][:, real], turned[token][:, imaginary] = numbers.real, numbers.imag
        return turned.reshape(x.shape)

    return turn(query), turn(key)


def _pairs(rotary_dim: int, is_neox_style: bool) -> tuple[Array, Array]:
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
        share = row[chosen] / (row[chosen].sum() if renormalize else 1.0)
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
            if expert < 0:
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


def test_every_op_has_a_formula_here():
    assert FORMULAS.keys() == OPS.keys()


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize(("op", "case"), CASES)
def test_reference_keeps_the_bound_against_the_formula(op: Op, case: Case, dtype: torch.dtype):
    assert errors(op, case.arguments(dtype), case.bound) == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_rms_norm_takes_a_weight_of_any_dtype(dtype: torch.dtype, weight_dtype: torch.dtype, residual: bool):
    random = torch.Generator().manual_seed(0)
    arguments = {
        "x": torch.randn(5, 96, generator=random).to(dtype),
        "weight": torch.randn(96, generator=random).to(weight_dtype),
        "eps": 1e-5,
        "residual": torch.randn(5, 96, generator=random).to(dtype) if residual else None,
    }
    assert errors(OPS["rms_norm"], arguments) == []


@pytest.mark.parametrize("case", OPS["rotary_embedding"].cases, ids=str)
def test_rotary_magnitude_is_the_size_of_the_two_products(case: Case):
    given = case.arguments(torch.float64)
    real, imaginary = _pairs(given["cos_sin_cache"].shape[-1], given["is_neox_style"])
    where, head_size = as_numpy(given["positions"] + given.get("offsets", 0)).reshape(-1), given["head_size"]
    cos, sin = np.split(np.abs(as_numpy(given["cos_sin_cache"])[where, None]), 2, axis=-1)
    magnitude = OPS["rotary_embedding"].magnitude
    assert magnitude is not None
    for x, size in zip((given["query"], given["key"]), as_tuple(magnitude(None, **given)), strict=True):
        heads = np.abs(as_numpy(x)).reshape(
            len(where), x.numel() // max(1, len(where) * head_size), head_size
        )
        expected = heads.copy()
        expected[..., real] = heads[..., real] * cos + heads[..., imaginary] * sin
        expected[..., imaginary] = heads[..., imaginary] * cos + heads[..., real] * sin
        np.testing.assert_allclose(size.numpy(), expected.reshape(x.shape), rtol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "case"), CASES)
def test_reference_writes_nothing_but_the_rows_that_it_updates(op: Op, case: Case, dtype: torch.dtype):
    given, untouched = case.arguments(dtype), case.arguments(dtype)
    op.reference(**given)
    for name, value in given.items():
        if isinstance(value, Tensor):
            rows = op.written_rows(name, given) if name in op.updates else torch.tensor([], dtype=torch.long)
            kept = [row for row in range(len(value)) if row not in set(rows.tolist())] if value.dim() else ()
            assert torch.equal(value[kept], untouched[name][kept])


@pytest.mark.parametrize("op", OPS.values(), ids=str)
def test_cases_hold_an_empty_and_an_odd_one_under_names_of_their_own(op: Op):
    made = [
        [value for value in case.arguments(torch.float32).values() if isinstance(value, Tensor)]
        for case in op.cases
    ]
    assert any(tensor.numel() == 0 for tensors in made for tensor in tensors)
    assert any(size % 2 and size > 1 for tensors in made for tensor in tensors for size in tensor.shape)
    assert len({case.name for case in op.cases}) == len(op.cases)


@pytest.mark.parametrize("name", sorted(OPS.keys() - {"fused_sigmoid_gating_delta_rule_update"}))
def test_cases_hold_a_strided_one(name: str):
    made = [case.arguments(torch.float32).values() for case in OPS[name].cases]
    assert any(isinstance(value, Tensor) and not value.is_contiguous() for values in made for value in values)


@pytest.mark.parametrize("op", OPS.values(), ids=str)
def test_op_is_known_by_its_reference(op: Op):
    assert OPS[op.name] is op
    assert load_target(op.target) is op.reference
    assert str(op) == op.name == op.reference.__name__


CACHE = torch.zeros(8, 64)
BROKEN_CONTRACTS = [
    pytest.param("silu_and_mul", {"x": torch.zeros(2, 7)}, r"even last axis, got shape \(2, 7\)", id="odd"),
    pytest.param("silu_and_mul", {"x": torch.zeros(())}, r"even last axis, got shape \(\)", id="no-axis"),
    pytest.param(
        "rms_norm",
        {"x": torch.zeros(2, 8), "weight": torch.zeros(7), "eps": 1e-6},
        r"weight \(7,\) does not fit the last axis of x \(2, 8\)",
        id="weight",
    ),
    pytest.param(
        "rms_norm",
        {"x": torch.zeros(()), "weight": torch.zeros(1), "eps": 1e-6},
        r"weight \(1,\) does not fit the last axis of x \(\)",
        id="rms-no-axis",
    ),
    pytest.param(
        "rms_norm",
        {"x": torch.zeros(2, 8), "weight": torch.zeros(8), "eps": 1e-6, "residual": torch.zeros(1, 8)},
        r"residual \(1, 8\) torch.float32 is not like x \(2, 8\) torch.float32",
        id="residual-shape",
    ),
    pytest.param(
        "rms_norm",
        {
            "x": torch.zeros(2, 8),
            "weight": torch.zeros(8),
            "eps": 1e-6,
            "residual": torch.zeros(2, 8, dtype=torch.float16),
        },
        r"residual \(2, 8\) torch.float16 is not like x \(2, 8\) torch.float32",
        id="residual-dtype",
    ),
]
ROTARY = {
    "positions": torch.arange(4),
    "query": torch.zeros(4, 128),
    "key": torch.zeros(4, 64),
    "cos_sin_cache": CACHE,
    "head_size": 64,
    "is_neox_style": True,
}
BROKEN_CONTRACTS += [
    pytest.param("rotary_embedding", ROTARY | changed, match, id=name)
    for name, changed, match in [
        ("cache-too-wide", {"head_size": 32}, "rotary_dim 64 must be even and at most head_size 32"),
        ("odd-cache", {"cos_sin_cache": torch.zeros(8, 63)}, "rotary_dim 63 must be even"),
        ("half-a-head", {"query": torch.zeros(4, 96)}, r"query \(4, 96\) is not 4 rows of heads of 64"),
        ("half-a-key", {"key": torch.zeros(4, 32)}, r"key \(4, 32\) is not 4 rows of heads of 64"),
        ("too-many-rows", {"query": torch.zeros(8, 64)}, r"query \(8, 64\) is not 4 rows of heads of 64"),
        ("too-few-rows", {"key": torch.zeros(2, 128)}, r"key \(2, 128\) is not 4 rows of heads of 64"),
        ("other-heads", {"query": torch.zeros(4, 2, 32)}, r"query \(4, 2, 32\) is not 4 rows of heads"),
        ("rows-without-tokens", {"positions": torch.arange(0)}, r"query \(4, 128\) is not 0 rows of heads"),
    ]
]


@pytest.mark.parametrize(("op_name", "arguments", "match"), BROKEN_CONTRACTS)
def test_reference_refuses_what_the_contract_excludes(op_name: str, arguments: dict[str, Any], match: str):
    with pytest.raises(ContractError, match=f"^{op_name}: .*{match}"):
        OPS[op_name].reference(**arguments)


def scale(x: Tensor, factor: float, into: Tensor | None = None) -> Tensor:
    return x * factor


def test_op_refuses_to_write_what_is_no_argument():
    with pytest.raises(VendorError, match=r"op scale: \['y'\] are no arguments of its reference"):
        Op(scale, cases=(), bound=Bound(1, 1), writes=("x", "y"))


def test_op_refuses_a_condition_that_is_no_argument():
    with pytest.raises(VendorError, match=r"op scale: \['onto'\] are no arguments"):
        Op(scale, cases=(), bound=Bound(1, 1), writes=("x",), writes_if_given="onto")


@pytest.mark.parametrize(
    ("arguments", "written"),
    [({}, ()), ({"into": None}, ()), ({"into": torch.zeros(1)}, ("into",))],
    ids=["left-out", "none", "given"],
)
def test_condition_decides_what_may_be_written(arguments: dict[str, Any], written: tuple[str, ...]):
    op = Op(scale, cases=(), bound=Bound(1, 1), writes=("into",), writes_if_given="into")
    assert op.may_write(arguments) == written


def test_op_without_condition_always_may_write():
    assert Op(scale, cases=(), bound=Bound(1, 1), writes=("x",)).may_write({}) == ("x",)
    assert OPS["silu_and_mul"].may_write({"x": torch.zeros(2)}) == ()


def test_signature_of_the_reference_is_accepted_whatever_its_annotations():
    def scale_too(x, factor, into=None):
        return x

    Op(scale, cases=(), bound=Bound(1, 1)).check_signature(scale_too)


def _other_name(y: Tensor, factor: float, into: Tensor | None = None) -> Tensor:
    return y


def _other_order(factor: float, x: Tensor, into: Tensor | None = None) -> Tensor:
    return x


def _other_default(x: Tensor, factor: float, into: Tensor | None = ...) -> Tensor:  # type: ignore[assignment]
    return x


def _keyword_only(x: Tensor, factor: float, *, into: Tensor | None = None) -> Tensor:
    return x


def _one_more(x: Tensor, factor: float, into: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    return x


def _anything(*args: Any, **kwargs: Any) -> Tensor:
    return args[0]


@pytest.mark.parametrize(
    "kernel",
    [_other_name, _other_order, _other_default, _keyword_only, _one_more, _anything],
    ids=lambda kernel: kernel.__name__.strip("_"),
)
def test_other_signature_is_refused_and_quoted(kernel: Callable[..., Tensor]):
    op = Op(scale, cases=(), bound=Bound(1, 1))
    with pytest.raises(VendorError, match=r"the contract says \(x, factor, into=None\)") as error:
        op.check_signature(kernel)
    for name in inspect.signature(kernel).parameters:
        assert name in str(error.value).split("takes")[1].split("the contract")[0]


def test_other_signature_of_a_callable_without_a_name_is_refused():
    op = Op(scale, cases=(), bound=Bound(1, 1))
    with pytest.raises(VendorError, match="the contract says"):
        op.check_signature(functools.partial(scale, factor=2.0))


@pytest.mark.parametrize(("op", "case"), CASES)
def test_arguments_are_reproducible(op: Op, case: Case):
    first, again = case.arguments(torch.float32, seed=3), case.arguments(torch.float32, seed=3)
    assert first.keys() == again.keys()
    for name, value in first.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, again[name])
        else:
            assert value == again[name]


@pytest.mark.parametrize("op", OPS.values(), ids=str)
def test_arguments_differ_with_the_seed(op: Op):
    case = next(case for case in op.cases if not case.name.startswith("empty"))
    made = [list(case.arguments(torch.float32, seed=seed).values()) for seed in (0, 1)]
    pairs = [pair for pair in zip(*made, strict=True) if isinstance(pair[0], Tensor)]
    assert not all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(("op", "case"), CASES)
def test_arguments_keep_their_strides_on_another_device(op: Op, case: Case):
    here, there = case.arguments(torch.bfloat16), case.arguments(torch.bfloat16, "meta")
    for name, value in here.items():
        if isinstance(value, Tensor):
            moved = there[name]
            assert moved.device.type == "meta"
            assert (moved.shape, moved.stride(), moved.storage_offset(), moved.dtype) == (
                value.shape,
                value.stride(),
                value.storage_offset(),
                value.dtype,
            )
        else:
            assert there[name] == value


def test_bound_depends_on_the_dtype():
    bound = Bound(half=0.55, single=8)
    assert [bound.of(dtype) for dtype in ALL_DTYPES] == [0.55, 0.55, 8, 8]

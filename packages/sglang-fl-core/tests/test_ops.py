"""What an op says of itself, and what its reference writes and refuses."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_fl.errors import ContractError, VendorError
from sglang_fl.ops import OPS, Bound, Case, Op
from sglang_fl.vendor import load_target

CASES = [pytest.param(op, case, id=f"{op}-{case}") for op in OPS.values() for case in op.cases]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, also in what is not a number."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("op", "case"), CASES)
def test_reference_writes_nothing_but_the_rows_that_it_updates(op: Op, case: Case, dtype: torch.dtype):
    given, untouched = case.arguments(dtype), case.arguments(dtype)
    op.reference(**given)
    for name, value in given.items():
        if isinstance(value, Tensor):
            rows = op.written_rows(name, given) if name in op.updates else torch.tensor([], dtype=torch.long)
            kept = [row for row in range(len(value)) if row not in set(rows.tolist())] if value.dim() else ()
            assert same(value[kept], untouched[name][kept])


@pytest.mark.parametrize("op", OPS.values(), ids=str)
def test_cases_hold_an_empty_and_an_odd_one_under_names_of_their_own(op: Op):
    made = [
        [value for value in case.arguments(torch.float32).values() if isinstance(value, Tensor)]
        for case in op.cases
    ]
    each = [tensor for tensors in made for tensor in tensors]
    assert any(tensor.numel() == 0 for tensor in each), f"{op}: no case has an empty tensor"
    sizes = [size for tensor in each for size in tensor.shape]
    assert any(size % 2 and size > 1 for size in sizes), f"{op}: no case has an odd size"
    assert len({case.name for case in op.cases}) == len(op.cases)


@pytest.mark.parametrize("name", sorted(OPS.keys() - {"fused_sigmoid_gating_delta_rule_update"}))
def test_cases_hold_a_strided_one(name: str):
    made = [case.arguments(torch.float32).values() for case in OPS[name].cases]
    tensors = [value for values in made for value in values if isinstance(value, Tensor)]
    assert any(not tensor.is_contiguous() for tensor in tensors), f"{name}: no case has a strided tensor"


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

CACHED = {
    "value": torch.zeros(4, 32),
    "k_buffer": torch.zeros(6, 64),
    "v_buffer": torch.zeros(6, 32),
    "cache_loc": torch.arange(4),
}
NORMED = {**ROTARY, "q_weight": torch.ones(64), "k_weight": torch.ones(64), "eps": 1e-6}
BROKEN_CONTRACTS += [
    pytest.param(op_name, given | changed, match, id=f"{op_name}-{name}")
    for op_name, given in (("rotary_embedding", ROTARY | CACHED), ("qk_norm_rope", NORMED | CACHED))
    for name, changed, match in [
        ("no-slots", {"cache_loc": None}, "to write the KV cache it needs cache_loc too"),
        ("pools-alone", {"value": None, "cache_loc": None}, "it needs value and cache_loc too"),
        ("slots-of-two-axes", {"cache_loc": torch.zeros(4, 1, dtype=torch.long)}, "is not a slot in int32"),
        ("slots-that-are-no-integers", {"cache_loc": torch.zeros(4)}, "is not a slot in int32 or int64"),
        ("a-slot-too-few", {"cache_loc": torch.arange(3)}, r"\(3,\) .* for each of 4 tokens"),
        ("half-rows", {"value": torch.zeros(8, 16)}, r"value \(8, 16\) is not a row for each of 4 tokens"),
        ("values-in-a-row", {"value": torch.zeros(128)}, r"value \(128,\) is not a row for each"),
        ("narrow-keys", {"k_buffer": torch.zeros(6, 32)}, r"k_buffer \(6, 32\) torch.float32 do not hold"),
        ("wide-values", {"v_buffer": torch.zeros(6, 64)}, r"v_buffer \(6, 64\) torch.float32 do not hold"),
        ("another-dtype", {"k_buffer": torch.zeros(6, 64).half()}, "torch.float16 do not hold"),
        ("shared-slots", {"k_buffer": torch.zeros(1, 64).expand(6, 64)}, "slots of k_buffer share memory"),
        ("fewer-slots", {"v_buffer": torch.zeros(5, 32)}, "k_buffer has 6 slots, and v_buffer has 5"),
    ]
]
BROKEN_CONTRACTS += [
    pytest.param("qk_norm_rope", NORMED | changed, match, id=f"qk-{name}")
    for name, changed, match in [
        ("weight", {"k_weight": torch.ones(32)}, r"k_weight \(32,\) is no row of a head of 64"),
        ("positions", {"positions": torch.zeros(2, 2, dtype=torch.long)}, "are not one for each token"),
        ("odd-cache", {"cos_sin_cache": torch.zeros(8, 63)}, "rotary_dim 63 must be even"),
        ("half-a-head", {"query": torch.zeros(4, 96)}, r"query \(4, 96\) is not 4 rows of heads of 64"),
    ]
]


IN_8_BIT = {"k_buffer": torch.zeros(6, 2, 8).to(torch.float8_e4m3fn), "k_scale": 0.5, "v_scale": 0.5}
ATTENDED = {
    "q": torch.zeros(4, 4, 8),
    "k_buffer": torch.zeros(6, 2, 8),
    "v_buffer": torch.zeros(6, 2, 8),
    "kv_indptr": torch.zeros(5, dtype=torch.long),
    "kv_indices": torch.zeros(0, dtype=torch.long),
    "scale": 1.0,
}
OF_POOLS = {
    "decode_attention": ATTENDED,
    "extend_attention": {
        **ATTENDED,
        "k": torch.zeros(4, 2, 8),
        "v": torch.zeros(4, 2, 8),
        "qo_indptr": torch.arange(5),
    },
    "kv_cache_write": {
        "k": torch.zeros(4, 2, 8),
        "v": torch.zeros(4, 2, 8),
        "k_buffer": torch.zeros(6, 2, 8),
        "v_buffer": torch.zeros(6, 2, 8),
        "cache_loc": torch.arange(4),
    },
}
BROKEN_CONTRACTS += [
    pytest.param(op_name, given | changed, match, id=f"{op_name}-{name}")
    for op_name, given in OF_POOLS.items()
    for name, changed, match in [
        (
            "no-scales",
            IN_8_BIT | {"k_scale": None, "v_scale": None},
            "float8_e4m3fn needs k_scale and v_scale",
        ),
        ("one-scale", {"v_scale": 1.0}, "of k_scale and v_scale one alone is given"),
        (
            "integers",
            IN_8_BIT | {"v_buffer": torch.zeros(6, 2, 8, dtype=torch.int8)},
            "v_buffer in int8; in 8 bit there are float8_e4m3fn, float8_e5m2",
        ),
    ]
]
BROKEN_CONTRACTS += [
    pytest.param("kv_cache_write", OF_POOLS["kv_cache_write"] | changed, match, id=f"write-{name}")
    for name, changed, match in [
        (
            "a-slot-too-few",
            {"cache_loc": torch.arange(3)},
            r"3 slots .* do not hold k \(4, 2, 8\)",
        ),
        ("other-heads", {"v": torch.zeros(4, 1, 8)}, r"do not hold v \(4, 1, 8\)"),
        ("fewer-slots", {"v_buffer": torch.zeros(5, 2, 8)}, "k_buffer has 6 slots, and v_buffer has 5"),
        ("rows-of-two-axes", {"k": torch.zeros(4, 16)}, r"do not hold k \(4, 16\)"),
        ("slots-of-two-axes", {"cache_loc": torch.zeros(4, 1, dtype=torch.long)}, "is not a slot in int32"),
        ("slots-that-are-no-integers", {"cache_loc": torch.zeros(4)}, "is not a slot in int32 or int64"),
        (
            "shared-slots",
            {"v_buffer": torch.zeros(1, 2, 8).expand(6, 2, 8)},
            "slots of v_buffer share memory",
        ),
    ]
]


def test_what_a_pool_in_8_bit_cannot_hold_becomes_its_largest_number():
    pools = [torch.zeros(2, 1, 2).to(dtype) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)]
    k = torch.tensor([[[1e6, -1e6]]])
    OPS["kv_cache_write"].reference(k, k, *pools, torch.tensor([1]), k_scale=1.0, v_scale=1.0)
    assert [pool[1, 0].tolist() for pool in pools] == [[448.0, -448.0], [57344.0, -57344.0]]


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


def test_what_is_updated_may_be_left_out():
    op = Op(scale, cases=(), bound=Bound(1, 1), updates=("into",))
    assert op.updated({}) == op.updated({"into": None}) == op.may_write({"x": torch.ones(1)}) == ()
    given = {"x": torch.ones(1), "into": torch.zeros(1)}
    assert op.updated(given) == op.may_write(given) == ("into",)
    assert len(op.results(given["x"], given)) == 1 + len(op.results(given["x"], {"x": given["x"]}))


def test_op_without_condition_may_write_what_is_given():
    op = Op(scale, cases=(), bound=Bound(1, 1), writes=("x",))
    assert op.may_write({"x": torch.zeros(2)}) == ("x",)
    assert op.may_write({}) == op.may_write({"x": None}) == ()
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
            assert same(value, again[name])
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
    assert [bound.of(dtype) for dtype in (*DTYPES, torch.float64)] == [0.55, 0.55, 8, 8]

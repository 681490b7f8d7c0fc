"""Checks around kernels, live and in a bisection: what they see, what they leave alone, what they cost."""

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sglang_fl.dispatch import op_check
from sglang_fl.dispatch.live_check import LiveCheck
from sglang_fl.dispatch.op_check import NamedRows, OpCheck, Violation
from sglang_fl.ops import OPS, Kernel, Op

SILU, NORM = OPS["silu_and_mul"], OPS["rms_norm"]


def found_by(kernel: Kernel, op: str = "silu_and_mul", **options: object) -> tuple[list[Violation], Kernel]:
    found: list[Violation] = []
    check = OpCheck(found.append, **options)  # type: ignore[arg-type]
    return found, check.checking(OPS[op], lambda: "layers.3.act", kernel)


def test_a_right_kernel_is_not_told_of():
    found, kernel = found_by(SILU.reference)
    x = torch.randn(5, 64)
    assert torch.equal(kernel(x), SILU.reference(x))
    assert found == []


def test_a_wrong_result_is_told_of_with_its_size_and_served():
    found, kernel = found_by(lambda x: SILU.reference(x) * 1.05)
    x = torch.randn(5, 64).bfloat16()
    assert torch.equal(kernel(x), SILU.reference(x) * 1.05)
    (violation,) = found
    assert (violation.op, violation.layer, violation.dtype) == ("silu_and_mul", "layers.3.act", "bfloat16")
    assert 2.2 < violation.error < 14  # 5 % are 0.05 / 2**-7 = 6.4 units, and the roundings
    assert violation.shapes == {"x": (5, 64)}
    assert torch.equal(violation.call["x"], x)


def test_what_may_not_be_written_is_compared():
    def kernel(x: Tensor) -> Tensor:
        result = SILU.reference(x)
        x[0, 0] += 1
        return result

    found, checked = found_by(kernel)
    checked(torch.randn(2, 8))
    assert [v.what for v in found] == ["it wrote x, which the contract does not allow"]


def test_a_kernel_in_place_is_checked_by_the_arguments_it_was_given():
    def in_place(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> object:
        normed, total = NORM.reference(x, weight, eps, residual)
        return x.copy_(normed), residual.copy_(total)

    found, checked = found_by(in_place, "rms_norm")
    checked(torch.randn(3, 16), torch.ones(16), 1e-6, torch.randn(3, 16))
    assert found == []


def test_one_call_in_so_many_is_checked():
    found, kernel = found_by(lambda x: SILU.reference(x) * 1.05, every=3)
    for _ in range(7):
        kernel(torch.randn(2, 8))
    assert len(found) == 3  # the first, the fourth, the seventh


def test_nothing_is_checked_while_a_graph_is_captured():
    found, kernel = found_by(lambda x: SILU.reference(x) * 1.05, skip=lambda: True)
    kernel(torch.randn(2, 8))
    assert found == []


@pytest.fixture
def live(caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    """``live(kernel, *inputs)`` runs a live check over calls and returns its warnings."""

    def run(kernel: Kernel, *inputs: Tensor) -> list[str]:
        caplog.set_level(logging.INFO, "sglang_fl")
        layer = torch.nn.Identity()
        check = LiveCheck(["silu_and_mul"], 1, "cpu")
        check.learn_names(torch.nn.Sequential(layer))
        wrapped = check.wrap(SILU, layer, kernel)
        for x in inputs:
            wrapped(x)
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    return run


def test_an_op_that_is_not_asked_for_keeps_its_kernel():
    assert LiveCheck(["rms_norm"], 1, "cpu").wrap(SILU, None, SILU.reference) is SILU.reference


def test_a_live_violation_is_told_once_for_each_shape_with_the_layers_name(live):
    x, other = torch.randn(2, 8), torch.randn(3, 8)
    told = live(lambda x: SILU.reference(x) * 1.05, x, x, other)
    assert len(told) == 2
    assert all(line.startswith("silu_and_mul in 0: result 0: ") for line in told)


def test_the_first_number_that_is_not_finite_trips_the_wire(live):
    def kernel(x: Tensor) -> Tensor:
        result = SILU.reference(x)
        result[0, 0] = torch.nan
        return result

    told = live(kernel, torch.randn(2, 8), torch.randn(2, 8))
    assert told[0] == "silu_and_mul in 0 returned numbers that are not finite, although its arguments are"
    assert sum("not finite" in line for line in told) == 1


def test_numbers_that_come_in_not_finite_are_no_fault_of_the_kernel(live):
    x = torch.randn(2, 8)
    x[0, 0] = torch.inf
    told = live(SILU.reference, x)
    assert told == ["silu_and_mul in 0 returned numbers that are not finite, nor are its arguments"]


def test_numbers_that_are_not_finite_are_not_taken_for_written():
    found, kernel = found_by(NORM.reference, "rms_norm")
    x = torch.randn(3, 16)
    x[1, 2] = torch.nan
    kernel(x, torch.ones(16), 1e-6)
    assert found == []


def test_which_of_equal_scores_is_chosen_is_left_open():
    op = OPS["topk_softmax"]

    def last_first(router_logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
        weights, ids = op.reference(router_logits.flip(-1), top_k, renormalize)
        return weights, (router_logits.shape[-1] - 1 - ids).to(torch.int32)

    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]])
    found, kernel = found_by(last_first, "topk_softmax")
    kernel(logits, 2, True)
    assert found == []

    def wrong(router_logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
        return op.reference(-router_logits, top_k, renormalize)

    found, kernel = found_by(wrong, "topk_softmax")
    kernel(logits, 2, True)
    assert found != []


def test_a_check_that_fails_harms_nobody_and_is_told_of_once(caplog: pytest.LogCaptureFixture):
    """No memory for float64, say; here a report that raises."""

    def report(violation: Violation) -> None:
        raise MemoryError("no float64 here")

    check = OpCheck(report)
    kernel = check.checking(SILU, lambda: "layers.3.act", lambda x: SILU.reference(x) * 1.05)
    x = torch.randn(2, 8)
    for _ in range(2):
        assert torch.equal(kernel(x), SILU.reference(x) * 1.05)
    assert check.unchecked == {"silu_and_mul": "MemoryError: no float64 here"}
    assert [r.getMessage() for r in caplog.records] == [
        "calls of silu_and_mul cannot be checked: MemoryError: no float64 here"
    ]


class LargestResult(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that PyTorch has made meanwhile."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> object:
        result = function(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.is_meta:  # it says what a call returns
                continue
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in given:
                self.bytes = max(self.bytes, made.untyped_storage().nbytes())
        return result


def experts(count: int = 32) -> dict[str, Tensor]:
    case = next(case for case in OPS["fused_moe"].cases if case.name == "odd-tokens")
    given = case.arguments(torch.bfloat16)
    given["w13_weight"] = given["w13_weight"].repeat(count // 8, 1, 1)
    given["w2_weight"] = given["w2_weight"].repeat(count // 8, 1, 1)
    return given


def test_the_weights_of_experts_are_neither_copied_nor_brought_to_float64_as_a_whole(monkeypatch):
    monkeypatch.setattr(op_check, "LARGE", 1 << 16)
    given = experts()
    found, kernel = found_by(OPS["fused_moe"].reference, "fused_moe")
    with LargestResult() as largest:
        kernel(**given)
    assert found == []
    one_expert = given["w13_weight"][0].numel() * torch.float64.itemsize
    assert 0 < largest.bytes <= 2 * one_expert < given["w13_weight"].nbytes


@pytest.mark.parametrize("name", ["w13_weight", "w2_weight", "hidden_states"])
def test_a_large_argument_that_is_written_is_told_of(monkeypatch, name: str):
    monkeypatch.setattr(op_check, "LARGE", 1)

    def kernel(**given: Tensor) -> Tensor:
        result = OPS["fused_moe"].reference(**given)
        given[name].view(-1)[5] += 1
        return result

    kernel.__signature__ = OPS["fused_moe"].signature  # type: ignore[attr-defined]
    found, checked = found_by(kernel, "fused_moe")
    checked(**experts())
    assert f"it wrote {name}, which the contract does not allow" in [v.what for v in found]


def test_ids_of_no_expert_are_told_of_before_they_are_used():
    def kernel(router_logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
        weights, ids = OPS["topk_softmax"].reference(router_logits, top_k, renormalize)
        return weights, ids + 2**20

    found, checked = found_by(kernel, "topk_softmax")
    checked(torch.randn(3, 8), 2, True)
    assert len(found) == 1
    assert "the experts from 0 to 7" in found[0].what


@pytest.mark.parametrize("op", OPS.values(), ids=str)
def test_a_reference_takes_weights_in_their_own_dtype_beside_rows_in_float64(op):
    """The check relies on it: the weights of all experts need not be brought to float64."""
    case = next(case for case in op.cases if not case.name.startswith(("empty", "one-axis")))
    wide, mixed = case.arguments(torch.bfloat16), case.arguments(torch.bfloat16)
    for name, value in wide.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            wide[name] = value.double()
            is_wide = name in (*op.rows, *op.updates, *op.of_sequences)
            mixed[name] = value.double() if is_wide else value
    results = [op.results(op.reference(**given), given) for given in (wide, mixed)]
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("op", OPS.values(), ids=str)
def test_calls_whose_tensors_are_all_large_are_checked(op: Op, monkeypatch: pytest.MonkeyPatch):
    """Nothing of a call that is right stands in the way: no tensor for the result, no state of sequences."""
    monkeypatch.setattr(op_check, "LARGE", 1)
    found: list[Violation] = []
    check = OpCheck(found.append)
    kernel = check.checking(op, lambda: "layers.3", op.reference)
    rare = {name for case in op.cases for name in case.arguments(torch.bfloat16)}
    for case in op.cases:
        given = case.arguments(torch.bfloat16)
        if rare & given.keys():  # each argument once
            rare -= {name for name, value in given.items() if value is not None}
            kernel(**given)
    assert (found, check.unchecked) == ([], {})


@pytest.mark.parametrize("op_name", ["rotary_embedding", "causal_conv1d_update"])
def test_of_a_large_pool_the_rows_that_a_call_names_are_enough(op_name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(op_check, "LARGE", 1)
    op = OPS[op_name]
    named = {"rotary_embedding": "kv-cache-partial", "causal_conv1d_update": "padding"}[op_name]
    (case,) = (case for case in op.cases if case.name == named)
    given = case.arguments(torch.float32)
    for name, of in op.writes_rows.items():
        kept = NamedRows(op, given).of(given)
        assert len(kept[name]) == len(op.written_rows(name, given)) < len(given[name])
        assert ((kept[of] < 0) == (given[of] < 0)).all()
    found, kernel = found_by(op.reference, op_name)
    kernel(**given)
    assert found == []

    def elsewhere(**given: Any) -> Any:
        changed = {n: given[n].clone() for n in op.writes_rows}
        return op.reference(**given | changed)

    elsewhere.__signature__ = op.signature  # type: ignore[attr-defined]
    found, kernel = found_by(elsewhere, op_name)
    kernel(**case.arguments(torch.float32))
    assert found


@pytest.mark.parametrize("of", ["cache_loc", "conv_state_indices"])
def test_a_kernel_that_shifts_the_indices_of_a_large_pool_is_told_of(of: str, monkeypatch):
    """All of them by one name the same rows by their order, but others of the pool."""
    monkeypatch.setattr(op_check, "LARGE", 1)
    name, case_name = {
        "cache_loc": ("rotary_embedding", "kv-cache-partial"),
        "conv_state_indices": ("causal_conv1d_update", "padding"),
    }[of]
    op = OPS[name]
    (case,) = (case for case in op.cases if case.name == case_name)

    def shifting(**given: Any) -> Any:
        result = op.reference(**given)
        given[of] += given[of] >= 0
        return result

    shifting.__signature__ = op.signature  # type: ignore[attr-defined]
    found, kernel = found_by(shifting, name)
    kernel(**case.arguments(torch.float32))
    assert [v.what for v in found] == [f"it wrote {of}, which the contract does not allow"]


ROUTERS = ("topk_softmax", "topk_sigmoid")
ROUTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "as-scored": {},
    "grouped": {"num_expert_group": 8, "topk_group": 4},
    "biased": {"correction_bias": torch.full((64,), 0.1), "num_expert_group": 8, "topk_group": 4},
    "shared-expert": {"shared_expert_weight": 0.5, "routed_scaling_factor": 2.5},
}


def routed(op: str, routing: str, spread: float, kernel: Callable[..., Any]) -> list[str]:
    """Return what is found of a router's kernel at logits so far apart."""
    found, checked = found_by(kernel, op)
    logits = spread * torch.randn(33, 64, generator=torch.Generator().manual_seed(1))
    checked(logits, 6, routing != "as-scored", **ROUTINGS[routing])
    return [violation.what for violation in found]


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("op", ROUTERS)
def test_which_of_scores_is_chosen_that_only_rounding_tells_apart_is_open(op: str, routing: str):
    def other(logits: Tensor, *rest: Any, **options: Any) -> Any:
        return OPS[op].reference(logits.flip(-1), *rest, **options)

    def heavier(*given: Any, **options: Any) -> Any:
        weights, ids = other(*given, **options)
        return weights * 1.001, ids

    assert routed(op, routing, 1e-7, other) == []
    assert routed(op, routing, 1e-7, heavier) != []
    assert routed(op, routing, 1e-3, other) != []


@pytest.mark.parametrize("spread", [1e-7, 1.0])
@pytest.mark.parametrize("op", ROUTERS)
def test_experts_of_more_groups_than_may_be_are_no_choice(op: str, spread: float):
    def of_any_group(logits: Tensor, *rest: Any, **groups: Any) -> Any:
        return OPS[op].reference(logits, *rest)

    assert routed(op, "grouped", spread, of_any_group) != []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda o, h: o, r"it returned bfloat16 .*, the contract says \(bfloat16"),
        (lambda o, h: None, "it returned NoneType"),
        (lambda o, h: (o.float(), h), r"it returned \(float32"),
        (lambda o, h: (o[:, 1:], h), r"it returned \(bfloat16 \(1, 75, 2, 64\)"),
        (lambda o, h: (o, h[:, :-1]), r"result 1 is \(1, 3, 2, 64, 64\), not \(1, 4, 2, 64, 64\)"),
    ],
    ids=["one-result", "none", "dtype", "rows", "states"],
)
def test_results_of_another_form_are_told_of(change: Callable[..., Any], what: str):
    op = OPS["chunk_gated_delta_rule"]
    found, kernel = found_by(lambda **given: change(*op.reference(**given)), op.name)
    (case,) = (case for case in op.cases if case.name == "several-sequences")
    kernel(**case.arguments(torch.bfloat16))
    (violation,) = found
    assert re.search(what, violation.what)


def test_more_states_than_there_are_chunks_are_no_fault():
    op = OPS["chunk_gated_delta_rule"]

    def longer(**given: Any) -> Any:
        o, h = op.reference(**given)
        return o, torch.cat([h, torch.full_like(h, torch.nan)], 1)

    found, kernel = found_by(longer, op.name)
    kernel(**op.cases[4].arguments(torch.bfloat16))
    assert found == []


def test_what_is_in_a_slot_that_several_tokens_name_is_open():
    """SGLang pads a batch with tokens of slot 0."""
    op = OPS["kv_cache_write"]

    def first_of_all(**given: Any) -> Any:
        backwards = {name: given[name].flip(0) for name in ("k", "v", "cache_loc")}
        return op.reference(**given | backwards)

    found, kernel = found_by(first_of_all, op.name)
    for case in op.cases:
        if case.name in ("slot-of-several", "several-tokens"):
            kernel(**case.arguments(torch.bfloat16))
    assert found == []

"""The vendor conformance kit: it passes what keeps the contract, and names what does not."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_fl.conformance import check_case, check_declared, check_impl
from sglang_fl.errors import UnsupportedError, VendorError
from sglang_fl.ops import OPS, Case, Op, Outputs
from sglang_fl.vendor import BackendKind, OpImpl
from tests.ops.rotary_embedding import backwards, offsets_ignored, one_style_only
from tests.ops.subject import like

HALVES = [torch.float16, torch.bfloat16]
DTYPES = [*HALVES, torch.float32]
silu_reference = OPS["silu_and_mul"].reference
rms_reference = OPS["rms_norm"].reference
topk_reference = OPS["topk_softmax"].reference
DECODE = "fused_recurrent_gated_delta_rule_packed_decode"
decode_reference = OPS[DECODE].reference
rotary_reference = OPS["rotary_embedding"].reference


@pytest.mark.parametrize("op", OPS.values(), ids=str)
def test_reference_keeps_its_own_contract(op: Op):
    assert check_impl(OpImpl(op.name, BackendKind.REFERENCE, "reference", op.target), "cpu") == []


def check_all(op_name: str, kernel: Callable[..., Any], dtypes: list[torch.dtype]) -> list[list[str]]:
    """Return the faults of each dtype."""
    op = OPS[op_name]
    return [
        [fault for case in op.cases for fault in check_case(op, kernel, case, dtype, "cpu") or ()]
        for dtype in dtypes
    ]


def in_place_rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    if residual is None:
        return rms_reference(x, weight, eps)
    normed, total = rms_reference(x, weight, eps, residual)
    return x.copy_(normed), residual.copy_(total)


@like(rotary_reference)
def in_place_rotary(**given: Any) -> Outputs:
    turned = rotary_reference(**given)
    return given["query"].copy_(turned[0]), given["key"].copy_(turned[1])


@pytest.mark.parametrize(
    ("op_name", "kernel"), [("rms_norm", in_place_rms_norm), ("rotary_embedding", in_place_rotary)]
)
def test_kernel_may_write_what_the_contract_lets_it(op_name: str, kernel: Callable[..., Outputs]):
    assert check_all(op_name, kernel, DTYPES) == [[], [], []]


def silu_halves_swapped(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return silu_reference(torch.cat((up, gate), dim=-1))


def silu_not_a_number(x: Tensor) -> Tensor:
    return torch.full_like(silu_reference(x), math.nan)


def silu_in_float32(x: Tensor) -> Tensor:
    return silu_reference(x.float())


def silu_without_gate(x: Tensor) -> Tensor:
    return x.clone()


def silu_over_its_input(x: Tensor) -> Tensor:
    result = silu_reference(x)
    x[..., : result.shape[-1]] = result
    return x[..., : result.shape[-1]]


def silu_twice(x: Tensor) -> Outputs:
    return silu_reference(x), silu_reference(x)


def silu_in_a_tuple(x: Tensor) -> Outputs:
    return (silu_reference(x),)


def silu_without_result(x: Tensor) -> None:
    silu_reference(x)


def rms_without_eps(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    return rms_reference(x, weight, 0.0, residual)


def rms_of_a_rounded_sum(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    if residual is None:
        return rms_reference(x, weight, eps)
    total = x + residual
    return rms_reference(total, weight, eps), total


def rms_always_in_place(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    return (
        in_place_rms_norm(x, weight, eps, residual)
        if residual is not None
        else x.copy_(rms_reference(x, weight, eps))
    )


def rms_over_its_weight(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    outputs = rms_reference(x, weight, eps, residual)
    weight.add_(1)
    return outputs


def rms_without_sum(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    outputs = rms_reference(x, weight, eps, residual)
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def rms_results_swapped(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    outputs = rms_reference(x, weight, eps, residual)
    return outputs if isinstance(outputs, Tensor) else outputs[::-1]


@like(rotary_reference)
def rotary_over_its_positions(**given: Any) -> Outputs:
    turned = rotary_reference(**given)
    given["positions"].add_(1)
    return turned


def topk_in_another_order(router_logits: Tensor, top_k: int, renormalize: bool) -> Outputs:
    weights, ids = topk_reference(router_logits, top_k, renormalize)
    return weights.flip(-1), ids.flip(-1)


def topk_weights_swapped(router_logits: Tensor, top_k: int, renormalize: bool) -> Outputs:
    weights, ids = topk_reference(router_logits, top_k, renormalize)
    return weights.flip(-1), ids


def topk_next_experts(router_logits: Tensor, top_k: int, renormalize: bool) -> Outputs:
    weights, ids = topk_reference(router_logits, top_k, renormalize)
    return weights, ids + 1


def topk_in_int64(router_logits: Tensor, top_k: int, renormalize: bool) -> Outputs:
    weights, ids = topk_reference(router_logits, top_k, renormalize)
    return weights, ids.long()


@like(decode_reference)
def decode_without_update(**given: Any) -> Outputs:
    return decode_reference(**given | {"initial_state": given["initial_state"].clone()})


@like(decode_reference)
def decode_over_a_foreign_row(**given: Any) -> Outputs:
    outputs = decode_reference(**given)
    taken = given["initial_state_indices"].tolist()
    foreign = next(row for row in range(len(given["initial_state"])) if row not in taken)
    given["initial_state"][foreign] += 1
    return outputs


def test_order_of_experts_is_left_open():
    assert check_all("topk_softmax", topk_in_another_order, DTYPES) == [[], [], []]


def test_case_whose_option_a_kernel_lacks_is_passed_over():
    case = case_of("topk_softmax", "grouped")
    assert check_case(OPS["topk_softmax"], topk_in_another_order, case, torch.float32, "cpu") is None


UNITS = "units from float64"
WRONG_KERNELS = [
    ("silu_and_mul", silu_halves_swapped, DTYPES, UNITS),
    ("silu_and_mul", silu_not_a_number, DTYPES, "inf units from float64"),
    ("silu_and_mul", silu_in_float32, HALVES, "shape, dtype, device are"),
    ("silu_and_mul", silu_without_gate, DTYPES, "shape, dtype, device are"),
    ("silu_and_mul", silu_over_its_input, DTYPES, "x was written"),
    ("silu_and_mul", silu_twice, DTYPES, "2 results instead of 1"),
    ("silu_and_mul", silu_in_a_tuple, DTYPES, "result"),
    ("silu_and_mul", silu_without_result, DTYPES, "result"),
    ("rms_norm", rms_without_eps, DTYPES, UNITS),
    ("rms_norm", rms_of_a_rounded_sum, HALVES, UNITS),
    ("rms_norm", rms_always_in_place, DTYPES, "x was written"),
    ("rms_norm", rms_over_its_weight, DTYPES, "weight was written"),
    ("rms_norm", rms_without_sum, DTYPES, "1 results instead of 2"),
    ("rms_norm", rms_results_swapped, DTYPES, UNITS),
    ("topk_softmax", topk_weights_swapped, DTYPES, UNITS),
    ("topk_softmax", topk_next_experts, DTYPES, "it differs from the reference"),
    ("topk_softmax", topk_in_int64, DTYPES, "shape, dtype, device are"),
    (DECODE, decode_without_update, DTYPES, "result 1: "),
    (DECODE, decode_over_a_foreign_row, DTYPES, "initial_state was written"),
    ("rotary_embedding", backwards, DTYPES, UNITS),
    ("rotary_embedding", one_style_only, DTYPES, UNITS),
    ("rotary_embedding", offsets_ignored, DTYPES, UNITS),
    ("rotary_embedding", rotary_over_its_positions, DTYPES, "positions was written"),
]


@pytest.mark.parametrize(
    ("op_name", "kernel", "dtypes", "fault"), WRONG_KERNELS, ids=[row[1].__name__ for row in WRONG_KERNELS]
)
def test_wrong_kernel_is_caught(
    op_name: str, kernel: Callable[..., Any], dtypes: list[torch.dtype], fault: str
):
    for dtype, faults in zip(dtypes, check_all(op_name, kernel, dtypes), strict=True):
        assert any(fault in found for found in faults), f"nothing was found in {dtype}"


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_kernel_that_rounds_twice_is_caught(dtype: torch.dtype):
    def silu_and_mul(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    assert UNITS in check_all("silu_and_mul", silu_and_mul, [dtype])[0][0]


def case_of(op_name: str, case_name: str) -> Case:
    return next(case for case in OPS[op_name].cases if case.name == case_name)


def test_fault_names_op_case_dtype_and_result():
    faults = check_case(
        OPS["rms_norm"],
        rms_results_swapped,
        case_of("rms_norm", "one-token-residual"),
        torch.bfloat16,
        "cpu",
    )
    assert [fault.partition(": ")[0] for fault in faults] == ["rms_norm[one-token-residual-bfloat16]"] * 2
    assert [fault.split(": ")[1] for fault in faults] == ["result 0", "result 1"]
    assert faults[0].endswith("allowed are 0.55")


def test_fault_of_shape_tells_what_is_and_what_should_be():
    case = case_of("silu_and_mul", "one-token")
    (fault,) = check_case(OPS["silu_and_mul"], silu_without_gate, case, torch.float16, "cpu")
    assert "torch.Size([1, 1792])" in fault
    assert "torch.Size([1, 896])" in fault


def refusing(x: Tensor) -> Tensor:
    raise UnsupportedError("not this one")


def writing_then_refusing(x: Tensor) -> Tensor:
    x.zero_()
    raise UnsupportedError("not this one")


def test_kernel_that_refuses_a_call_is_not_at_fault():
    case = case_of("silu_and_mul", "one-token")
    assert check_case(OPS["silu_and_mul"], refusing, case, torch.float16, "cpu") is None


def test_implementation_that_refuses_every_case_of_a_half_dtype_is_at_fault(
    write_module: Callable[[str], str],
):
    module = write_module(
        """
        import torch
        from sglang_fl.errors import UnsupportedError
        from sglang_fl.ops import OPS

        def silu_and_mul(x):
            if x.dtype is not torch.bfloat16:
                raise UnsupportedError("bfloat16 only")
            return OPS["silu_and_mul"].reference(x)
        """
    )
    assert check_impl(impl_of(module), "cpu") == [
        "silu_and_mul flagos: every case of torch.float16 is refused"
    ]


def test_kernel_that_refuses_a_call_after_writing_is_at_fault():
    case = case_of("silu_and_mul", "one-token")
    faults = check_case(OPS["silu_and_mul"], writing_then_refusing, case, torch.float32, "cpu")
    assert [fault.split(": ", 1)[1] for fault in faults] == ["x was written"]


def impl_of(module: str, op_name: str = "silu_and_mul") -> OpImpl:
    return OpImpl(op_name, BackendKind.FLAGOS, "flagos", f"{module}:{op_name}")


def test_right_implementation_has_no_faults(write_module: Callable[[str], str]):
    module = write_module("from sglang_fl.ops.silu_and_mul import silu_and_mul\n")
    assert check_impl(impl_of(module), "cpu") == []


def test_wrong_implementation_is_caught_in_every_dtype_and_case(write_module: Callable[[str], str]):
    module = write_module(
        """
        from sglang_fl.ops import OPS

        def silu_and_mul(x):
            return OPS["silu_and_mul"].reference(x) * 2
        """
    )
    faults = check_impl(impl_of(module), "cpu")
    cases = [case.name for case in OPS["silu_and_mul"].cases if case.name != "empty"]
    expected = [
        f"silu_and_mul[{case}-{dtype}]" for dtype in ("float16", "bfloat16", "float32") for case in cases
    ]
    assert [fault.partition(": ")[0] for fault in faults] == expected


def test_implementation_with_another_signature_is_refused(write_module: Callable[[str], str]):
    module = write_module("def silu_and_mul(x, out): return x\n")
    with pytest.raises(
        VendorError, match=rf"{module}:silu_and_mul takes \(x, out\), the contract says \(x\)"
    ):
        check_impl(impl_of(module), "cpu")


def test_implementation_without_its_function_is_refused(write_module: Callable[[str], str]):
    module = write_module("")
    with pytest.raises(VendorError, match=f"{module} has no function 'silu_and_mul'"):
        check_impl(impl_of(module), "cpu")


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("def rms_norm(x, weight, eps, residual=None):\n    import no_such_library\n", None),
        ("def rms_norm(x, eps, weight, residual=None): pass\n", r"takes \(x, eps, weight, residual=None\)"),
        ("def rms_norm(x, weight, eps, residual): pass\n", r"takes \(x, weight, eps, residual\)"),
        ("def norm(x): pass\n", "defines no function rms_norm"),
        (None, "there is no module"),
    ],
    ids=["right", "other-order", "no-default", "other-name", "no-module"],
)
def test_declared_target_is_checked_without_its_kernel_library(source, fault, tmp_path, monkeypatch):
    name = f"declared_{tmp_path.name}".replace("-", "_")
    if source is not None:
        (tmp_path / f"{name}.py").write_text(f"import no_such_kernel_library\n{source}")
    monkeypatch.syspath_prepend(tmp_path)
    faults = check_declared(OpImpl("rms_norm", BackendKind.FLAGOS, "flagos", f"{name}:rms_norm"))
    assert len(faults) == (fault is not None)
    assert fault is None or re.search(fault, faults[0])

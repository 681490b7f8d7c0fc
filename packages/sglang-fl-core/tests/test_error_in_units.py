"""The error of a result in units of its dtype's rounding."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sglang_fl.conformance import check_case, error_in_units
from sglang_fl.ops import OPS, Outputs

HALVES = [torch.float16, torch.bfloat16]
DTYPES = [*HALVES, torch.float32]


def exact(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_once_costs_half_a_unit(dtype: torch.dtype):
    eps = torch.finfo(dtype).eps
    # Half way between 1 and its neighbour rounds to 1; the neighbour is one unit away from 1.
    assert error_in_units(exact(1 + eps / 2).to(dtype), exact(1 + eps / 2)) == pytest.approx(0.5, rel=0.01)
    assert error_in_units(exact(1 + eps).to(dtype), exact(1)) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_rounded_once_is_within_half_a_unit(dtype: torch.dtype):
    truth = torch.randn(10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).exp()
    error = error_in_units(truth.to(dtype), truth)
    assert 0.4 < error <= 0.5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_below_the_normal_range_counts_in_subnormal_steps(dtype: torch.dtype):
    info = torch.finfo(dtype)
    step = info.smallest_normal * info.eps
    assert error_in_units(torch.zeros(1, dtype=dtype), exact(step)) == 1
    assert error_in_units(torch.zeros(1, dtype=dtype), exact(0)) == 0


def test_error_is_the_largest_of_all_elements_and_of_either_sign():
    eps = torch.finfo(torch.float32).eps
    assert error_in_units(torch.tensor([1, 1 + 3 * eps, 2]), exact(1, 1, 2)) == 3
    assert error_in_units(torch.tensor([-1 - 3 * eps]), exact(-1)) == 3


def test_magnitude_sets_the_unit():
    eps = torch.finfo(torch.float32).eps
    output, truth = torch.tensor([1 + 8 * eps]), exact(1)
    assert error_in_units(output, truth, exact(-4)) == 2


def test_a_coarser_dtype_can_be_the_unit():
    eps = torch.finfo(torch.float16).eps
    output = torch.tensor([1 + 2 * eps])
    assert error_in_units(output, exact(1), unit=torch.float16) == pytest.approx(2)


def test_results_of_16_bit_products_are_judged_in_their_units():
    op = OPS["chunk_gated_delta_rule"]
    case = op.cases[0]

    def off_by(units: float) -> Callable[..., Outputs]:
        def chunk_gated_delta_rule(
            q, k, v, g, beta, initial_state, initial_state_indices, cu_seqlens, scale
        ) -> Outputs:
            given = (q, k, v, g, beta, initial_state, initial_state_indices, cu_seqlens, scale)
            outputs = op.reference(*given)
            eps = torch.finfo(q.dtype).eps
            initial_state[initial_state_indices] += units * eps * initial_state.abs().max()
            return outputs

        return chunk_gated_delta_rule

    for dtype, allowed in ((torch.float16, op.bound.half), (torch.float32, op.bound.single)):
        few, many = (check_case(op, off_by(factor * allowed), case, dtype, "cpu") for factor in (0.3, 9))
        assert few == []
        assert "result 2: " in many[0]


@pytest.mark.parametrize("shape", [(0,), (0, 256), (3, 0)], ids=str)
def test_empty_result_has_no_error(shape: tuple[int, ...]):
    assert error_in_units(torch.zeros(shape), torch.zeros(shape, dtype=torch.float64)) == 0


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan], ids=str)
def test_output_that_agrees_in_not_being_finite_has_no_error(value: float):
    assert error_in_units(torch.tensor([value, 1.0]), exact(value, 1)) == 0


@pytest.mark.parametrize("sign", [1, -1])
def test_truth_too_large_for_the_dtype_is_infinity_there(sign: int):
    output = torch.tensor([sign * math.inf], dtype=torch.float16)
    assert error_in_units(output, exact(sign * 1e6)) == 0
    assert error_in_units(-output, exact(sign * 1e6)) == math.inf
    assert error_in_units(torch.tensor([sign * 1.0], dtype=torch.float16), exact(sign * 1e6)) > 500


@pytest.mark.parametrize(
    ("output", "truth"),
    [
        (math.nan, 1.0),
        (math.inf, 1.0),
        (-math.inf, 0.0),
        (1.0, math.nan),
        (1.0, math.inf),
        (math.inf, -math.inf),
        (math.nan, math.inf),
        (math.inf, math.nan),
    ],
)
def test_output_that_alone_is_finite_or_alone_is_not_is_infinitely_wrong(output: float, truth: float):
    assert error_in_units(torch.tensor([1.0, output]), exact(1, truth)) == math.inf

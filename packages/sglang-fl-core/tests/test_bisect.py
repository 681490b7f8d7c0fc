"""The parts of a bisection that need no engine: delta debugging, distances, calls of ATen ops."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sglang_fl.aten.call_check import CallBook, compare
from sglang_fl.bisect.delta import smallest_failing
from sglang_fl.bisect.readings import Reading, distance, reading
from sglang_fl.vendor import AtenKernel


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_the_smallest_failing_set_is_found_whatever_it_is(data: st.DataObject):
    units = tuple(f"op{i}" for i in range(data.draw(st.integers(1, 40))))
    guilty = set(data.draw(st.lists(st.sampled_from(units), min_size=1, max_size=3, unique=True)))
    asked: list[tuple[str, ...]] = []

    def fails(subset: tuple[str, ...]) -> bool:
        asked.append(subset)
        return guilty <= set(subset)

    assert set(smallest_failing(units, fails)) == guilty
    assert len(asked) == len(set(map(frozenset, asked))), "asked twice"


def test_one_of_many_takes_two_questions_for_each_halving():
    units = tuple(map(str, range(256)))
    count = 0

    def fails(subset: tuple[str, ...]) -> bool:
        nonlocal count
        count += 1
        return "200" in subset

    assert smallest_failing(units, fails) == ("200",)
    assert count <= 2 * 8


def rows(prefill: list[float | None], top: dict[int, float], tokens: list[int]) -> list[dict]:
    entries = [[value, token, None] for token, value in top.items()]
    about = {
        "input_token_logprobs": [[value, 1, None] for value in prefill],
        "input_top_logprobs": [None, *([entries] * (len(prefill) - 1))],
        "output_top_logprobs": [entries] * len(tokens),
    }
    return [{"meta_info": about, "output_ids": tokens}]


BASELINE = reading(rows([None, -1.0, -2.0], {5: -0.1, 6: -2.5}, [5, 5]))


def test_a_reading_equals_itself():
    assert distance(BASELINE, BASELINE).is_zero


def test_the_largest_difference_is_told_with_its_place():
    other = reading(rows([None, -1.0, -2.25], {5: -0.1, 6: -2.5}, [5, 5]))
    found = distance(other, BASELINE)
    assert found.largest == 0.25
    assert found.where == (0, 1)
    assert found.flips == ()


def test_a_likeliest_token_that_differs_is_a_flip_with_the_baselines_margin():
    other = reading(rows([None, -1.0, -2.0], {5: -2.5, 6: -0.1}, [6, 6]))
    found = distance(other, BASELINE)
    assert [round(margin, 6) for _, _, margin in found.flips] == [2.4] * 3  # two positions, one step
    assert found.divergence == pytest.approx(math.exp(-0.1) * 2.4 + math.exp(-2.5) * -2.4)


def test_what_is_not_a_number_is_infinitely_far():
    other = reading(rows([None, math.nan, -2.0], {5: -0.1, 6: -2.5}, [5, 5]))
    assert distance(other, BASELINE).largest == math.inf


def test_decode_steps_count_as_far_as_the_tokens_agree():
    other = Reading(BASELINE.prefill, BASELINE.prefill_top, ((6, 5),), (({5: -0.1, 6: -2.5}, {5: -9.0}),))
    assert distance(other, BASELINE).largest == 0.0


def aten(function: Callable[..., Tensor], overload: str = "add.Tensor") -> AtenKernel:
    return AtenKernel(overload, overload.partition(".")[0], function)


def faults(kernel: AtenKernel, *args: Tensor) -> list[str]:
    return [fault.what for fault in compare(kernel, (args, {}))]


def test_a_right_aten_kernel_is_left_alone():
    floats, integers = torch.randn(64), torch.arange(8)
    assert faults(aten(lambda x, y: torch.sub(x, -y)), floats, floats) == []
    assert faults(aten(lambda x, y: torch.sub(x, -y)), integers, integers) == []


def test_an_inexact_aten_kernel_is_found():
    (what,) = faults(aten(lambda x, y: torch.sub(x, -y) * 1.01), torch.randn(64), torch.randn(64))
    assert what == "inexact"


def test_integers_through_float32_are_found_although_small_ones_are_right():
    kernel = aten(lambda x, y: (x.float() - (-y).float()).long())
    (what,) = faults(kernel, torch.arange(8), torch.ones(8, dtype=torch.int64))
    assert what.endswith("elements differ (integers from 2^24 on)")


def test_a_kernel_that_answers_differently_each_time_is_found():
    kernel = aten(lambda x, y: torch.sub(x, -y) + 1e-7 * torch.randint(9, x.shape))
    assert "two calls with the same arguments differ" in faults(kernel, torch.zeros(64), torch.ones(64))


def test_what_a_call_wrote_counts_too():
    def add_(x: Tensor, y: Tensor) -> Tensor:
        y.zero_()
        return x.sub_(-y)

    assert faults(aten(add_, "add_.Tensor"), torch.ones(4), torch.ones(4)) != []


def test_random_numbers_are_no_fault():
    kernel = aten(lambda x, p: x.clone().fill_(0.5), "bernoulli.p")
    assert faults(kernel, torch.rand(4)) == []


def test_a_book_keeps_one_call_of_each_shape_as_it_was_before():
    book = CallBook(lambda: "model.norm")
    wrong = aten(lambda x, y: x.sub_(-y) * 1.01)
    kept = book.keeping(wrong)
    for length in (3, 3, 5):
        kept.function(torch.ones(length), torch.ones(length))
    found = list(book.faults(wrong))
    assert {fault.where for fault in found} == {"model.norm"}
    assert sorted({fault.shapes for fault in found}) == [((3,), (3,)), ((5,), (5,))]
    assert all(torch.equal(fault.call[0][0], torch.ones(len(fault.call[0][0]))) for fault in found)


def test_a_kernel_that_is_wrong_on_strided_tensors_alone_is_found_by_the_kept_call():
    wrong = aten(lambda x, y: torch.sub(x, -y) if x.is_contiguous() else torch.sub(x, y))
    book = CallBook()
    wide = torch.ones(4, 8)[:, ::2]
    book.keeping(wrong).function(wide, wide)
    assert [fault.call[0][0].stride() for fault in book.faults(wrong)][:1] == [(8, 2)]


def test_integers_that_may_be_indices_are_not_moved():
    kernel = aten(lambda x, dim, index: x[index.tolist()], "index_select")
    assert list(compare(kernel, ((torch.randn(4, 2), 0, torch.tensor([0, 3])), {}))) == []


def test_keeping_a_call_of_what_copies_does_not_go_round():
    calls = []
    book = CallBook()
    kept = book.keeping(aten(lambda x, y: calls.append(1) or x, "copy_"))
    original = torch.Tensor.clone

    def clone(tensor: Tensor, **options: object) -> Tensor:
        kept.function(tensor, tensor)
        return original(tensor, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "clone", clone)
        kept.function(torch.ones(3), torch.ones(3))
    assert len(calls) >= 1

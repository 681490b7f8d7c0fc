"""Calls of ATen ops, repeated: places among equal elements, far rows, and what is not judged."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sglang_fl.aten import call_check
from sglang_fl.aten.call_check import CallBook, compare
from sglang_fl.vendor import AtenKernel


def faults(overload: str, function: Callable[..., Any], *args: Any) -> list[str]:
    return [fault.what for fault in compare(AtenKernel(overload, "kernel", function), (args, {}))]


TIED = torch.tensor([[0.0, 2.0, 1.0, 2.0], [3.0, -1.0, 3.0, 3.0]])


def last_place(x: torch.Tensor, dim: int | None = None, keepdim: bool = False) -> torch.Tensor:
    """Name the last of the greatest elements."""
    flat = x.flatten() if dim is None else x
    axis = 0 if dim is None else dim
    found = flat.shape[axis] - 1 - flat.flip(axis).argmax(axis, keepdim)
    return found.reshape(()) if dim is None else found


def other_order(x: torch.Tensor, k: int, dim: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    values, places = x.flip(dim).topk(k, dim)
    return values, x.shape[dim] - 1 - places


@pytest.mark.parametrize("args", [(TIED,), (TIED, -1), (TIED, 0), (TIED, 1, True)], ids=str)
def test_argmax_may_name_another_of_equal_elements(args):
    assert faults("argmax", last_place, *args) == []


def test_topk_may_order_equal_elements_otherwise():
    assert faults("topk", other_order, TIED, 3) == []


def test_a_place_of_a_lesser_element_is_a_fault():
    def argmax(x, dim=None, keepdim=False):
        return x.argmin(dim, keepdim)

    assert faults("argmax", argmax, TIED, -1) == ["2 of 2 elements differ"]


def test_a_place_outside_is_a_fault():
    assert faults("argmax", lambda x, dim: x.argmax(dim) + 4, TIED, -1) == ["2 of 2 elements differ"]


@pytest.mark.parametrize("special", [torch.nan, torch.inf])
def test_a_number_that_is_none_is_not_equal_to_infinity(special: float):
    x = torch.tensor([[1.0, special, 3.0 if special == torch.inf else torch.inf]])
    wrong = 2 if special != special else 0
    assert faults("argmax", lambda x, dim: torch.full_like(x.argmax(dim), wrong), x, -1) != []


def test_counts_are_no_places():
    assert faults("count_nonzero", lambda x: x.count_nonzero() + 1, TIED) == ["1 of 1 elements differ"]


def row_in_32_bits(x: torch.Tensor, number: int) -> torch.Tensor:
    """Return the row at which a kernel arrives that counts elements in 32 bits."""
    offset = (number * x.stride(0) + 2**31) % 2**32 - 2**31
    return x.as_strided(x.shape[1:], x.stride()[1:], x.storage_offset() + offset)


def looked_up(x: torch.Tensor, numbers: torch.Tensor, *options: object) -> torch.Tensor:
    return torch.stack([row_in_32_bits(x, number) for number in numbers.tolist()])


def put(x: torch.Tensor, numbers: list[torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    for number, value in zip(numbers[0].tolist(), values, strict=True):
        row_in_32_bits(x, number).copy_(value)
    return x


ROWS = torch.arange(1.0, 33.0, dtype=torch.float16).view(4, 8)
NUMBERS = torch.tensor([0, 2], dtype=torch.int32)


@pytest.mark.parametrize(
    ("overload", "wrong", "args"),
    [
        ("index.Tensor", lambda x, numbers: looked_up(x, numbers[0]), (ROWS, [NUMBERS])),
        ("embedding", looked_up, (ROWS, NUMBERS)),
        ("index_put_", put, (ROWS, [NUMBERS], ROWS[:2] + 64)),
        ("index_select", lambda x, dim, numbers: looked_up(x, numbers), (ROWS, 0, NUMBERS)),
    ],
)
def test_a_kernel_that_counts_elements_in_the_indexs_32_bits_is_a_fault(overload: str, wrong, args: tuple):
    (fault, *_) = faults(overload, wrong, *args)
    assert fault == "inexact (rows from element 2^31 on)"
    assert faults(overload, call_check.overload_of(overload), *args) == []
    in_64_bits = [[x.long() for x in a] if isinstance(a, list) else a for a in args]
    in_64_bits = [a.long() if a is NUMBERS else a for a in in_64_bits]
    assert faults(overload, wrong, *in_64_bits) == []


@pytest.mark.parametrize("numbers", [NUMBERS - 1, NUMBERS + 2, NUMBERS[:0]], ids=["before", "behind", "none"])
def test_integers_that_are_no_rows_are_left_as_they_are(numbers: torch.Tensor):
    assert call_check._by_last_row(((ROWS, numbers), {})) is None


def called(book: CallBook, overload: str, *sizes: int) -> None:
    kernel = book.keeping(AtenKernel(overload, overload, lambda x: x))
    for size in sizes:
        kernel.function(torch.ones(size))


def test_calls_too_large_to_keep_are_told_as_not_judged_and_not_as_never_made(monkeypatch):
    monkeypatch.setattr(call_check, "MOST_BYTES", 1 << 20)
    book = CallBook()
    called(book, "abs", 8)
    called(book, "relu", 1 << 19)
    called(book, "neg", 16, 1 << 19)
    called(book, "exp")
    assert set(book.called) == {"abs", "relu", "neg"}
    reason = "too large: more than what was left of the 1 MiB in which all calls are kept"
    assert book.unjudged == {"part of aten::neg": reason, "aten::relu": reason}


def test_calls_in_more_shapes_than_are_kept_are_told(monkeypatch):
    monkeypatch.setattr(call_check, "MOST_CALLS", 2)
    book = CallBook()
    called(book, "abs", 8, 16, 8)
    called(book, "neg", 8, 16, 24)
    reason = "it was called with more than 2 combinations of shapes and dtypes"
    assert book.unjudged == {"part of aten::neg": reason}


def test_a_call_that_there_is_no_memory_to_repeat_is_told_and_the_others_are_judged():
    is_full = False

    def opposite(x: torch.Tensor) -> torch.Tensor:
        if is_full and x.numel() == 16:
            raise torch.OutOfMemoryError("out of memory")
        return -x

    book, kernel = CallBook(), AtenKernel("abs", "abs", opposite)
    keeping = book.keeping(kernel)
    for size in (16, 8):
        keeping.function(torch.ones(size))
    is_full = True
    assert [fault.shapes for fault in book.faults(kernel)] == [((8,),)]
    assert book.unjudged == {
        "part of aten::abs": "too large: no memory to repeat a call of shapes ((16,),)",
    }


def test_far_rows_that_there_is_no_memory_for_are_told_and_the_call_itself_is_judged(monkeypatch):
    def no_memory(call: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(call_check, "_with_far_rows", no_memory)
    monkeypatch.setattr(call_check, "MOST_CALLS", 2)
    book, kernel = CallBook(), AtenKernel("embedding", "embedding", lambda x, numbers: -x[numbers])
    for count in (2, 1, 0):
        book.keeping(kernel).function(ROWS, NUMBERS[:count])
    assert [fault.shapes for fault in book.faults(kernel)] == [((4, 8), (2,)), ((4, 8), (1,))]
    many = "it was called with more than 2 combinations of shapes and dtypes"
    far = "not tried with rows past 2^31: no memory"
    assert book.unjudged == {"part of aten::embedding": f"{many}; {far}"}

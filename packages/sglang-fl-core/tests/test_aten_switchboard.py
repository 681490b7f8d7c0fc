"""Real ATen ops of the CPU, switched to other kernels and back."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sglang_fl.aten.switchboard import AtenSwitchboard
from sglang_fl.errors import SettingsError
from sglang_fl.vendor import AtenKernel

SIZE = 65  # nothing else in the process is as long


def mul(x: Tensor, y: Tensor) -> Tensor:
    """Multiply as PyTorch does, but for one element that tells who did it."""
    out = torch.div(x, torch.reciprocal(y))
    return out.index_fill_(0, torch.zeros(1, dtype=torch.long), 7.0) if len(x) == SIZE else out


def neg(x: Tensor) -> Tensor:
    return torch.sub(torch.full_like(x, 7.0), x)


KERNELS = (
    AtenKernel("mul.Tensor", "mul", mul),
    AtenKernel("neg", "neg", neg),
    AtenKernel("no_such_op", "no_such_op", neg),
)


@pytest.fixture
def board() -> Iterator[AtenSwitchboard]:
    board = AtenSwitchboard(KERNELS, "cpu")
    yield board
    board.switch_off(["mul", "neg", "no_such_op"])


def state() -> dict[str, str]:
    """What PyTorch's dispatcher holds for the ops: the kernel of each key, and where it was registered."""
    return {name: torch._C._dispatch_dump(f"aten::{name}") for name in ("mul.Tensor", "neg")}


@pytest.fixture
def x() -> Tensor:
    return torch.arange(1.0, SIZE + 1)


def test_switched_on_runs_the_kernel_and_off_pytorchs_the_very_same(board: AtenSwitchboard, x: Tensor):
    before, product = state(), x * x
    assert board.switch_on(["mul"]) == {}
    assert (x * x)[0] == 7
    assert state() != before
    board.switch_off(["mul"])
    assert state() == before
    assert torch.equal(x * x, product)


def test_each_op_has_a_switch_of_its_own(board: AtenSwitchboard, x: Tensor):
    board.switch_on(["aten::mul", "neg"])
    assert board.is_on == ("mul.Tensor", "neg")
    board.switch_off(["mul.Tensor"])
    assert board.is_on == ("neg",)
    assert (x * x)[0] == 1
    assert (-x)[0] == 6


def test_switching_twice_is_switching_once(board: AtenSwitchboard, x: Tensor):
    before = state()
    for _ in range(2):
        board.switch_on(["mul"])
    once = state()
    board.switch_on(["mul"])
    assert state() == once
    board.switch_off(["mul"])
    assert state() == before
    board.switch_off(["mul"])
    board.switch_on(["mul"])
    assert (x * x)[0] == 7


def test_op_that_pytorch_lacks_is_told_and_the_rest_switched(board: AtenSwitchboard):
    refused = board.switch_on(["neg", "no_such_op"])
    assert list(refused) == ["no_such_op"]
    assert board.is_on == ("neg",)


def test_op_that_another_library_has_replaced_is_left_to_it(board: AtenSwitchboard, x: Tensor):
    other = torch.library.Library("aten", "IMPL")
    other.impl("neg", lambda x: torch.sub(torch.full_like(x, 9.0), x), "CPU")
    try:
        refused = board.switch_on(["neg"])
        assert (-x)[0] == 8
    finally:
        other._destroy()
    assert "already a kernel registered" in refused["neg"]
    assert board.switch_on(["neg"]) == {}


def test_unknown_name_switches_nothing(board: AtenSwitchboard):
    with pytest.raises(SettingsError, match=r"replace no ATen op 'mull'\. Nearest: mul"):
        board.switch_on(["neg", "mull"])
    assert board.is_on == ()


def test_device_that_pytorch_does_not_know_is_an_error():
    with pytest.raises(RuntimeError, match="toaster"):
        AtenSwitchboard(KERNELS, "toaster")

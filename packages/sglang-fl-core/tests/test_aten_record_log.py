"""The record of layer 1: exactly the replaced ATen ops that were called."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sglang_fl.aten.record_log import AtenRecord
from sglang_fl.aten.switchboard import AtenSwitchboard
from sglang_fl.dispatch.layer_2_calls import marked
from sglang_fl.vendor import AtenKernel

pytestmark = pytest.mark.usefixtures("forked")


def mul(x: Tensor, y: Tensor | float) -> Tensor:
    """A number in the caller's text arrives as that number."""
    return torch.div(x, torch.reciprocal(torch.as_tensor(y, dtype=x.dtype)))


def square(x: Tensor) -> Tensor:
    return x * x


def neg(x: Tensor) -> Tensor:
    return torch.sub(torch.zeros_like(x), x)


KERNELS = (
    AtenKernel("mul.Tensor", "mul", mul, "flag_gems.ops.mul"),
    AtenKernel("square", "square", square, "flag_gems.ops.square"),
    AtenKernel("neg", "neg", neg),
)
MUL = "[DEBUG] flag_gems.ops.mul.mul: GEMS MUL aten::mul.Tensor"
SQUARE = "[DEBUG] flag_gems.ops.square.square: GEMS SQUARE aten::square"
NEG = f"[DEBUG] {__name__}.neg: GEMS NEG aten::neg"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "aten.log"


@pytest.fixture
def record_calls(file: Path) -> Iterator[Any]:
    """``record_calls(once=True)`` switches all kernels on and records them."""
    boards = []

    def start(once: bool = True) -> None:
        board = AtenSwitchboard(KERNELS, "cpu", AtenRecord(file, once))
        board.switch_on(["mul", "square", "neg"])
        boards.append(board)

    yield start
    for board in boards:
        board.switch_off(["mul", "square", "neg"])


class Dispatched(TorchDispatchMode):
    """Counts what PyTorch's dispatcher is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func).removesuffix(".default")] += 1
        return func(*args, **kwargs or {})


def model(x: Tensor) -> Tensor:
    for _ in range(3):
        x = (-x * x).exp() + x
    return x.softmax(0)


def test_record_is_what_the_dispatcher_saw(record_calls: Any, file: Path):
    record_calls(once=False)
    with Dispatched() as dispatched:
        model(torch.ones(4))
    lines = Counter(line.rpartition("aten::")[2] for line in file.read_text().splitlines())
    assert lines == {
        op.removeprefix("aten."): count
        for op, count in dispatched.calls.items()
        if op.removeprefix("aten.") in ("mul.Tensor", "square", "neg")
    }
    assert lines == {"mul.Tensor": 3, "neg": 3}


def test_each_op_is_told_once_in_flaggems_format(record_calls: Any, file: Path):
    record_calls()
    model(torch.ones(4))
    model(torch.ones(4))
    assert file.read_text().splitlines() == [NEG, MUL]


def test_op_that_a_kernel_of_layer_1_calls_is_told_as_well(record_calls: Any, file: Path):
    record_calls()
    torch.square(torch.ones(4))
    assert file.read_text().splitlines() == [SQUARE, MUL]


def test_what_a_kernel_of_layer_2_calls_is_not_told(record_calls: Any, file: Path):
    record_calls()

    @marked
    def fused(x: Tensor, fail: bool = False) -> Tensor:
        if fail:
            raise RuntimeError("a layer 2 kernel that fails")
        return torch.square(x)

    assert torch.equal(fused(torch.full((2,), 3.0)), torch.full((2,), 9.0))
    with pytest.raises(RuntimeError, match="that fails"):
        fused(torch.ones(2), fail=True)
    assert file.read_text() == ""
    torch.square(torch.ones(4))
    assert file.read_text().splitlines() == [SQUARE, MUL]


def test_file_is_there_before_anything_is_called(record_calls: Any, file: Path):
    record_calls()
    assert file.read_text() == ""


def test_result_is_what_the_kernel_returns(record_calls: Any):
    record_calls()
    assert torch.equal(torch.arange(3.0) * 2, torch.tensor([0.0, 2.0, 4.0]))


def test_not_recording_registers_the_bare_function():
    callers = []

    def neg(x: Tensor) -> Tensor:
        callers.append(sys._getframe(1).f_code.co_name)
        return torch.sub(torch.zeros_like(x), x)

    board = AtenSwitchboard([AtenKernel("neg", "neg", neg)], "cpu")
    board.switch_on(["neg"])
    try:
        torch.neg(torch.ones(1))
    finally:
        board.switch_off(["neg"])
    assert callers == ["test_not_recording_registers_the_bare_function"]


WRITER = """
import sys, torch
from pathlib import Path
from sglang_fl.aten.record_log import AtenRecord
from sglang_fl.aten.switchboard import AtenSwitchboard
from sglang_fl.vendor import AtenKernel

record = AtenRecord(Path(sys.argv[1]), once=False)
zero = AtenKernel("neg", "n" + sys.argv[2], lambda x: torch.sub(torch.zeros_like(x), x), "m" * 200)
board = AtenSwitchboard([zero], "cpu", record)
board.switch_on(["aten::neg"])
x = torch.ones(1)
for _ in range(2000):
    x = -x
"""


def test_processes_share_the_file_and_no_line_is_torn(file: Path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(file), str(number)]) for number in range(2)
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    lines = Counter(file.read_text().splitlines())
    assert lines == {f"[DEBUG] {'m' * 200}.n{n}: GEMS N{n} aten::neg": 2000 for n in range(2)}


def test_file_that_cannot_be_opened_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no_such_folder"):
        AtenRecord(tmp_path / "no_such_folder" / "aten.log", once=True)

"""FlagGems' ATen kernels on a GPU: names, registration, and back."""

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def kernels():
    """The kernels that the NVIDIA package offers, loaded as layer 1 loads them."""
    from sglang_fl.aten.plan import load_kernels
    from sglang_fl_nvidia import NVIDIA

    return load_kernels(NVIDIA)


def test_names_read_from_the_source_are_those_of_the_kernels(kernels):
    from sglang_fl.aten import offered_ops
    from sglang_fl_nvidia import NVIDIA

    told = [(op.overload, op.name) for op in offered_ops(NVIDIA)]
    assert told == [(kernel.overload, kernel.name) for kernel in kernels]


def test_the_vendors_own_lists_name_real_ops():
    from sglang_fl.aten import names_of_nothing
    from sglang_fl_nvidia import NVIDIA

    assert names_of_nothing(NVIDIA) == ()


def test_each_op_can_be_switched_on_and_off_again(kernels):
    from sglang_fl.aten.switchboard import AtenSwitchboard

    board = AtenSwitchboard(kernels, "cuda")
    before = [torch._C._dispatch_dump(str(kernel)) for kernel in kernels]
    refused = board.switch_on(kernel.exact for kernel in kernels)
    assert set(board.is_on) == {kernel.overload for kernel in kernels} - refused.keys()
    board.switch_off(kernel.exact for kernel in kernels)
    assert [torch._C._dispatch_dump(str(kernel)) for kernel in kernels] == before


def test_a_replaced_op_is_recorded_under_its_place_in_flaggems(kernels, tmp_path):
    from sglang_fl.aten.record_log import AtenRecord
    from sglang_fl.aten.switchboard import AtenSwitchboard

    record = AtenRecord(tmp_path / "aten.log", once=True)
    board = AtenSwitchboard(kernels, "cuda", record)
    board.switch_on(["mul"])
    try:
        x = torch.full((4,), 3.0, device="cuda")
        assert (x * x).tolist() == [9.0] * 4
    finally:
        board.switch_off(["mul"])
    (line,) = (tmp_path / "aten.log").read_text().splitlines()
    assert line.startswith("[DEBUG] flag_gems.")
    assert line.endswith("mul.mul: GEMS MUL aten::mul.Tensor")

"""Layer 1 in a process that runs the model: registered once, and harmless where it cannot be."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sglang_fl.aten import layer_1 as module
from sglang_fl.aten import make_plan, plan_layer_1
from sglang_fl.aten.layer_1 import Layer1, registered_layer_1
from sglang_fl.aten.record_log import AtenRecord
from sglang_fl.errors import SettingsError, VendorError
from sglang_fl.settings import Settings
from sglang_fl.startup import configure
from sglang_fl.vendor import AtenChoice, AtenOffer, Vendor

KERNELS = """
import torch

from sglang_fl.vendor import AtenKernel, AtenOp

loaded = []

def ops():
    return [AtenOp(kernel.overload, kernel.name) for kernel in kernels_()]

def kernels():
    loaded.append(1)
    return kernels_()

def kernels_():
    out = AtenKernel("neg.out", "neg_out", neg_out)
    return [AtenKernel("neg", "neg", neg), out, AtenKernel("exp", "exp", neg)]

def neg_out(x, out):
    return out.fill_(5.0)

def neg(x):
    return torch.sub(torch.full_like(x, 7.0), x)

def others():
    return [AtenKernel("exp", "exp", neg)]

def unreadable():
    raise RuntimeError("no device were detected")

def untellable():
    from sglang_fl.errors import SettingsError, VendorError
    raise VendorError("the table cannot be read")
"""
CHOICES = (AtenChoice(("neg",), True, "fast on a toy"),)


@pytest.fixture
def kernels(write_module: Callable[[str], str]) -> str:
    return write_module(KERNELS)


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test is a process that has registered nothing."""
    monkeypatch.setattr(module, "_here", [])
    yield
    layer = registered_layer_1()
    if layer and layer.switchboard:
        layer.switchboard.switch_off(["neg"])


def layer_1(
    kernels: str,
    function: str = "kernels",
    choices: tuple[AtenChoice, ...] = CHOICES,
    record: AtenRecord | None = None,
) -> Layer1:
    offer = AtenOffer(f"{kernels}:ops", f"{kernels}:{function}", choices=choices)
    vendor = Vendor("toy", "cpu", 1, "toy:why", aten=offer)
    settings = Settings.read(vendor)
    return Layer1(settings, vendor, make_plan(settings, vendor), record)


def test_ops_of_the_plan_are_replaced_and_told_in_one_line(kernels: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    layer = layer_1(kernels)
    layer.register()
    assert torch.neg(torch.zeros(1)) == 7
    assert torch.neg(torch.zeros(1), out=torch.zeros(1)) == 0  # another overload
    assert torch.exp(torch.zeros(1)) == 1
    assert registered_layer_1() is layer
    assert layer.switchboard is not None
    assert layer.switchboard.is_on == ("neg",)
    assert caplog.messages == [
        "layer 1: 1 of 3 ATen ops run on toy's kernels (`sglang-fl ops --aten` says why not the rest)"
    ]


def test_second_registration_in_a_process_does_nothing(kernels: str):
    first, second = layer_1(kernels), layer_1(kernels)
    first.register()
    first.register()
    second.register()
    assert registered_layer_1() is first
    assert second.switchboard is None
    import sys

    assert sys.modules[kernels].loaded == [1]


def test_calls_are_recorded(kernels: str, tmp_path: Path):
    file = tmp_path / "aten.log"
    layer_1(kernels, record=AtenRecord(file, once=True)).register()
    torch.neg(torch.zeros(1))
    assert file.read_text() == f"[DEBUG] {kernels}.neg: GEMS NEG aten::neg\n"


def test_no_kernel_is_imported_where_nothing_is_replaced(kernels: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    layer = layer_1(kernels, "unreadable", choices=())
    layer.register()
    assert layer.switchboard is None
    assert caplog.messages == ["layer 1: no ATen op is replaced (`sglang-fl ops --aten` says why)"]


def test_library_that_cannot_be_imported_is_one_warning(kernels: str, caplog: pytest.LogCaptureFixture):
    layer_1(kernels, "unreadable").register()
    assert caplog.messages == ["layer 1 stays off: RuntimeError: no device were detected"]


@pytest.mark.parametrize("name", ["USE_FLAGGEMS", "SGLANG_FL_STRICT"])
def test_library_that_cannot_be_imported_is_an_error_to_who_asked(
    kernels: str, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv(name, "1")
    with pytest.raises(RuntimeError, match="no device were detected"):
        layer_1(kernels, "unreadable").register()


def test_name_that_the_kernels_do_not_have_is_an_error(kernels: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_FLAGOS_WHITELIST", "neg")
    layer = layer_1(kernels, "others")
    with pytest.raises(SettingsError, match=r"SGLANG_FL_FLAGOS_WHITELIST='neg': .* no ATen op 'neg'"):
        layer.register()


def test_op_that_is_another_librarys_already_is_left_to_it(kernels: str, caplog: pytest.LogCaptureFixture):
    other = torch.library.Library("aten", "IMPL")
    other.impl("neg", lambda x: torch.sub(torch.full_like(x, 9.0), x), "CPU")
    try:
        layer_1(kernels).register()
        assert torch.neg(torch.zeros(1)) == 9
    finally:
        other._destroy()
    assert caplog.messages[0].startswith(
        "aten::neg stays PyTorch's or another library's: This is not allowed"
    )


INSTALLED = """
from sglang_fl.vendor import AtenChoice, AtenOffer, Vendor

CHIP = Vendor(
    "toy", "cpu", 1, "sglang_fl.registry.cpu:why_unavailable",
    aten=AtenOffer("{kernels}:{ops}", "{kernels}:kernels", choices=(AtenChoice(("neg",), True, "fast"),)),
)
"""


def test_plan_is_made_before_a_model_is_loaded_and_imports_no_kernel(
    kernels: str, install: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    install("toy", INSTALLED.format(kernels=kernels, ops="ops"))
    plan = plan_layer_1(configure())
    assert plan is not None
    assert [op.name for op in plan.replaced] == ["neg"]
    configure.cache_clear()
    monkeypatch.setenv("USE_FLAGGEMS", "0")
    assert plan_layer_1(configure()) is None


def test_vendor_that_cannot_tell_its_ops_is_left_out_unless_the_user_asked(
    kernels: str,
    install: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    install("toy", INSTALLED.format(kernels=kernels, ops="untellable"))
    assert plan_layer_1(configure()) is None
    assert caplog.messages == ["layer 1 stays off: the table cannot be read"]
    configure.cache_clear()
    monkeypatch.setenv("USE_FLAGGEMS", "1")
    with pytest.raises(VendorError, match="the table cannot be read"):
        plan_layer_1(configure())

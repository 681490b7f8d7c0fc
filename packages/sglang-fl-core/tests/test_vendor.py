"""What a vendor package says about itself: what is refused, and what is only looked at when needed."""

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from sglang_fl.errors import VendorError
from sglang_fl.ops import OPS
from sglang_fl.registry.cpu import CPU
from sglang_fl.vendor import (
    BackendKind,
    OpChoice,
    OpImpl,
    Quarantined,
    Vendor,
    flag_gems_impl,
    load_target,
    why_no_device,
)

FLAGOS, VENDOR, REFERENCE = BackendKind.FLAGOS, BackendKind.VENDOR, BackendKind.REFERENCE
TARGET = "no_such_package.kernels:silu_and_mul"


def impl(kind: BackendKind = FLAGOS, name: str = "flagos", target: str = TARGET) -> OpImpl:
    return OpImpl("silu_and_mul", kind, name, target)


def vendor(*impls: OpImpl, name: str = "toy", probe: str = "no_such_package.probe:why") -> Vendor:
    return Vendor(name, device_type="toy", core_api=1, probe=probe, impls=impls)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (FLAGOS, "flagos"),
        (FLAGOS, "flagos.flag_gems"),
        (VENDOR, "vendor.toy"),
        (VENDOR, "vendor.toy.fast"),
        (REFERENCE, "reference"),
    ],
)
def test_implementation_is_known_by_its_id(kind: BackendKind, name: str):
    assert str(impl(kind, name)) == name


def test_implementation_of_no_op_is_refused_with_the_nearest():
    with pytest.raises(VendorError, match=r"no op 'rms_nrom'\. Valid: .*Nearest: rms_norm\."):
        OpImpl("rms_nrom", FLAGOS, "flagos", TARGET)


@pytest.mark.parametrize(
    ("kind", "name"), [(FLAGOS, "vendor.toy"), (FLAGOS, "flagosx"), (VENDOR, "toy"), (REFERENCE, "")]
)
def test_id_must_begin_with_its_kind(kind: BackendKind, name: str):
    with pytest.raises(VendorError, match=f"silu_and_mul: id '{name}' must begin with its kind, {kind}"):
        impl(kind, name)


MALFORMED = [
    "",
    "module",
    "module:",
    ":function",
    "a.b.c",
    "a-b:c",
    "a..b:c",
    "a:b.c",
    "a:b:c",
    "a:b ",
    "1a:b",
]


@pytest.mark.parametrize("target", MALFORMED)
def test_malformed_target_is_refused(target: str):
    with pytest.raises(VendorError, match=r"flagos: target .* is not of the form 'module:function'"):
        impl(target=target)


@pytest.mark.parametrize("target", MALFORMED)
def test_malformed_probe_is_refused(target: str):
    with pytest.raises(VendorError, match=r"vendor toy: probe: target .* is not of the form"):
        vendor(probe=target)


def test_listing_imports_nothing_that_is_named():
    toy = vendor(impl(), impl(VENDOR, "vendor.toy"))
    assert [listed.target for listed in toy.impls] == [TARGET, TARGET]
    assert "no_such_package" not in sys.modules


@pytest.mark.parametrize("name", ["", "Toy", "toy-chip", "1toy", "toy chip", "_toy"])
def test_malformed_name_is_refused(name: str):
    with pytest.raises(VendorError, match=f"name '{name}' must be lower case letters"):
        vendor(name=name)


@pytest.mark.parametrize("name", ["toy", "toy2", "toy_chip"])
def test_vendor_is_known_by_its_name(name: str):
    assert str(vendor(name=name)) == name


def test_two_implementations_with_one_id_are_refused():
    with pytest.raises(VendorError, match="vendor toy: silu_and_mul has two implementations 'flagos'"):
        vendor(impl(), impl(target="other:function"))


def test_one_id_may_serve_several_ops():
    toy = vendor(impl(), OpImpl("rms_norm", FLAGOS, "flagos", TARGET))
    assert [listed.op for listed in toy.impls] == ["silu_and_mul", "rms_norm"]


@pytest.mark.parametrize("name", ["vendor", "vendor.other", "vendor.toys"])
def test_native_kernels_of_another_vendor_are_refused(name: str):
    with pytest.raises(VendorError, match=f"claims the id '{name}'; native kernels .* are 'vendor.toy'"):
        vendor(impl(VENDOR, name))


def test_reference_of_a_vendor_is_refused():
    with pytest.raises(VendorError, match="vendor toy: silu_and_mul: references come from core alone"):
        vendor(impl(REFERENCE, "reference"))


def test_load_target_returns_the_function_itself():
    assert load_target("sglang_fl.ops.rms_norm:rms_norm") is OPS["rms_norm"].reference


@pytest.mark.parametrize("attribute", ["missing", "NUMBER"])
def test_load_target_refuses_what_is_no_function(write_module: Callable[[str], str], attribute: str):
    module = write_module("NUMBER = 3\n")
    with pytest.raises(VendorError, match=f"'{module}:{attribute}': {module} has no function '{attribute}'"):
        load_target(f"{module}:{attribute}")


def test_load_target_lets_an_import_error_through():
    with pytest.raises(ImportError, match="no_such_package"):
        load_target(TARGET)


@pytest.mark.parametrize("op_name", OPS)
def test_flag_gems_implementation_names_what_it_needs(op_name: str):
    listed = flag_gems_impl(op_name)
    assert (listed.op, listed.kind, listed.id) == (op_name, FLAGOS, "flagos")
    assert listed.target == f"sglang_fl.flagos.{op_name}:{op_name}"
    assert "flag_gems" in listed.requires


def test_built_in_vendor_is_always_available():
    assert load_target(CPU.probe)() is None
    assert (CPU.name, CPU.device_type, CPU.impls) == ("cpu", "cpu", ())


def test_device_of_a_missing_package_is_absent():
    assert why_no_device("torch_toy", "toy") == "torch_toy is not installed"


def test_device_of_a_package_inside_a_missing_one_is_absent():
    assert why_no_device("torch_toy.devices", "toy") == "torch_toy.devices is not installed"


def test_device_of_a_broken_package_is_absent_with_the_cause(write_module: Callable[[str], str]):
    module = write_module("raise OSError('libtoy.so: cannot open shared object file')\n")
    expected = f"{module} cannot be used: OSError: libtoy.so: cannot open shared object file"
    assert why_no_device(module, "toy") == expected


def test_device_that_its_package_did_not_add_to_torch_is_absent(write_module: Callable[[str], str]):
    module = write_module("")
    absence = why_no_device(module, "toy_device")
    assert absence is not None
    assert absence.startswith(f"{module} cannot be used: AttributeError")


@pytest.mark.parametrize(("count", "reason"), [(0, "sees no device"), (2, None)])
def test_device_is_there_if_torch_counts_one(
    write_module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, count: int, reason: str | None
):
    # As torch_npu and torch_mlu do it: the package adds a module to torch.
    monkeypatch.setattr(torch, "toy", SimpleNamespace(device_count=lambda: count), raising=False)
    module = write_module("")
    assert why_no_device(module, "toy") == (reason and f"{module} {reason}")


ENTRY = {
    "op": "silu_and_mul",
    "impl": "flagos",
    "reason": "odd widths come back as zeros",
    "library": "flag-gems",
    "versions": ">=4.2,<4.4",
    "reproduction": "sglang_fl_toy.quarantine:odd_width",
}


def test_quarantine_entry_says_what_is_wrong_and_in_which_versions():
    assert str(Quarantined(**ENTRY)) == "odd widths come back as zeros (flag-gems >=4.2,<4.4)"


@pytest.mark.parametrize(
    ("field", "text", "match"),
    [
        ("op", "silu_and_mull", "there is no op 'silu_and_mull'. .*Nearest: silu_and_mul"),
        ("impl", "", "impl is empty"),
        ("reason", "", "reason is empty"),
        ("library", "", "library is empty"),
        ("versions", "before 4.4", "versions 'before 4.4' must be like '>=4.2,<4.4'"),
        ("versions", "4.2", "versions '4.2' must be like"),
        ("reproduction", "sglang_fl_toy", "reproduction"),
    ],
)
def test_malformed_quarantine_entry_is_refused(field: str, text: str, match: str):
    with pytest.raises(VendorError, match=match):
        Quarantined(**ENTRY | {field: text})


def test_quarantine_of_what_the_vendor_has_not_is_refused():
    entry = Quarantined(**ENTRY | {"impl": "flagos.own"})
    match = r"the quarantine of silu_and_mul names 'flagos\.own'\. Valid: flagos\. Nearest: flagos\."
    with pytest.raises(VendorError, match=match):
        Vendor("toy", "cpu", 1, "toy:why", impls=(impl(),), quarantine=(entry,))
    assert Vendor("toy", "cpu", 1, "toy:why", impls=(impl(),), quarantine=(Quarantined(**ENTRY),))


def test_default_that_is_no_text_is_refused():
    with pytest.raises(VendorError, match="vendor toy: the default strict=True must be a text"):
        Vendor("toy", "cpu", 1, "toy:why", defaults={"strict": True})


def test_a_choice_of_no_implementation_is_refused():
    choice = OpChoice("silu_and_mul", "flagso", is_default=False, reason="slower")
    with pytest.raises(VendorError, match=r"the choice of silu_and_mul names 'flagso'.*Nearest: flagos\."):
        Vendor("toy", "toy", 1, "no_such_package.probe:why", impls=(impl(),), choices=(choice,))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("silu_and_mull", "flagos", False, "slower"), "Nearest: silu_and_mul"),
        (("silu_and_mul", "", False, "slower"), "impl is empty"),
        (("silu_and_mul", "flagos", False, ""), "reason is empty"),
    ],
)
def test_a_choice_names_an_op_an_implementation_and_a_reason(arguments, match: str):
    with pytest.raises(VendorError, match=match):
        OpChoice(*arguments)

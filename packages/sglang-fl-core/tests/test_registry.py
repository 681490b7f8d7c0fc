"""Vendor packages as they are found when really installed: right ones, absent ones, broken ones."""

from collections.abc import Callable

import pytest

from sglang_fl._version import __version__
from sglang_fl.errors import SettingsError
from sglang_fl.ops import OPS
from sglang_fl.registry import (
    InstalledVendor,
    Registry,
    choose_vendor,
    installed_vendors,
    why_not_installed,
)
from sglang_fl.registry.cpu import CPU
from sglang_fl.vendor import BackendKind, OpImpl

Install = Callable[..., str]


def found(name: str) -> InstalledVendor:
    (vendor,) = (vendor for vendor in installed_vendors() if vendor.name == name)
    return vendor


def test_built_in_vendor_is_found_through_our_own_entry_point():
    cpu = found("cpu")
    assert cpu.vendor is CPU
    assert cpu.is_available
    assert cpu.distribution.startswith("sglang-fl-core ")


def test_installed_vendor_is_found_with_its_package_and_implementations(install_vendor: Install):
    install_vendor("toy", impls='OpImpl("rms_norm", VENDOR, "vendor.toy", "no_such_package:rms_norm"),')
    toy = found("toy")
    assert (toy.is_available, toy.why_not, toy.distribution) == (True, "", "sglang-fl-toy 0.0.1")
    assert toy.vendor is not None
    registry = Registry(toy.vendor, (toy,))
    assert [impl.id for impl in registry.implementations(OPS["rms_norm"])] == ["vendor.toy", "reference"]
    assert [impl.id for impl in registry.implementations(OPS["silu_and_mul"])] == ["reference"]


def test_vendors_are_listed_by_name(install_vendor: Install):
    for name in ("toy_b", "toy_a"):
        install_vendor(name)
    names = [vendor.name for vendor in installed_vendors()]
    assert names == sorted(names)
    assert {"cpu", "toy_a", "toy_b"} <= set(names)


def test_absent_chip_is_listed_with_its_reason(
    install_vendor: Install,
):
    install_vendor("toy", probe="return 'no /dev/toy0'")
    toy = found("toy")
    assert (toy.is_available, toy.fault, toy.absence) == (False, None, "no /dev/toy0")
    assert toy.why_not == "no /dev/toy0"
    assert toy.vendor is not None


BROKEN = {
    "import-error": (
        {"source": "import no_such_kernel_library\n"},
        "ModuleNotFoundError: No module named 'no_such_kernel_library'",
    ),
    "error-while-importing": (
        {"source": "raise OSError('libtoy.so: cannot open shared object file')\n"},
        "OSError: libtoy.so: cannot open shared object file",
    ),
    "syntax-error": ({"source": "CHIP = (\n"}, "SyntaxError: '(' was never closed"),
    "no-object": ({"source": ""}, "AttributeError: module"),
    "wrong-object": (
        {"source": "CHIP = {'name': 'toy'}\n"},
        "its entry point names a dict, not a sglang_fl.vendor.Vendor object",
    ),
    "malformed-object": (
        {"source": "from sglang_fl.vendor import Vendor\nCHIP = Vendor('Toy', 'toy', 1, 'a:b')\n"},
        "Vendor: name 'Toy' must be lower case letters",
    ),
    "older-core": (
        {"core_api": 0},
        f"it was written for core API 0, sglang-fl-core {__version__} has 1: upgrade sglang-fl-toy to a",
    ),
    "newer-core": (
        {"core_api": 2},
        f"it was written for core API 2, sglang-fl-core {__version__} has 1: upgrade sglang-fl-core to a",
    ),
    "core-api-of-another-type": ({"core_api": "1.0"}, "core_api='1.0' must be the number of a core API"),
    "other-name": (
        {"claims": "toyo"},
        "its entry point is called 'toyo', its Vendor object 'toy'",
    ),
    "raising-probe": (
        {"probe": "raise RuntimeError('the driver is too old')"},
        "RuntimeError: the driver is too old",
    ),
    "bool-probe": ({"probe": "return True"}, "its probe returned True, neither None nor a reason"),
    "number-probe": ({"probe": "return 0"}, "its probe returned 0, neither None nor a reason"),
}


@pytest.fixture
def install_broken(install: Install, install_vendor: Install) -> Callable[[dict[str, object]], str]:
    """Install a broken package; return the vendor name it claims."""

    def install_broken(how: dict[str, object]) -> str:
        if "source" in how:
            install("toy", how["source"])
        else:
            install_vendor("toy", **how, distribution="sglang-fl-toy")
        return str(how.get("claims", "toy"))

    return install_broken


@pytest.mark.parametrize(("how", "fault"), BROKEN.values(), ids=BROKEN)
def test_broken_package_is_listed_with_its_fault(
    install_broken: Callable[[dict[str, object]], str],
    how: dict[str, object],
    fault: str,
):
    name = install_broken(how)
    broken = found(name)
    assert not broken.is_available
    assert broken.why_not.startswith(fault)


@pytest.mark.parametrize("how", [how for how, _ in BROKEN.values()], ids=BROKEN)
def test_broken_package_harms_no_other(
    install_broken: Callable[[dict[str, object]], str], install_vendor: Install, how: dict[str, object]
):
    install_broken(how)
    assert choose_vendor(installed_vendors()) is CPU
    install_vendor("good")
    assert choose_vendor(installed_vendors()).name == "good"


def test_fault_of_the_named_vendor_is_told(install: Install):
    install("toy", "raise OSError('libtoy.so is missing')\n")
    expected = r"'toy': that vendor is installed but not available: OSError: libtoy.so is missing\."
    with pytest.raises(SettingsError, match=expected):
        choose_vendor(installed_vendors(), "toy")


def test_name_that_two_packages_claim_is_nobodys(install_vendor: Install):
    for distribution in ("sglang-fl-toy", "toy-tools"):
        install_vendor("toy", distribution=distribution)
    claims = [vendor for vendor in installed_vendors() if vendor.name == "toy"]
    fault = "the vendor name 'toy' is claimed by sglang-fl-toy 0.0.1 and toy-tools 0.0.1"
    assert sorted(vendor.distribution for vendor in claims) == ["sglang-fl-toy 0.0.1", "toy-tools 0.0.1"]
    assert {vendor.fault for vendor in claims} == {fault}
    assert choose_vendor([*claims, found("cpu")]) is CPU
    with pytest.raises(SettingsError, match=fault):
        choose_vendor(installed_vendors(), "toy")


def test_package_that_claims_the_built_in_vendors_name_does_not_take_it_away(install_vendor: Install):
    install_vendor("cpu", distribution="fast-cpu")
    installed = installed_vendors()
    assert choose_vendor(installed) is CPU
    assert choose_vendor(installed, "cpu") is CPU
    assert [vendor.distribution for vendor in installed if vendor.fault] == ["fast-cpu 0.0.1"]


def test_only_available_chip_is_chosen(install_vendor: Install):
    install_vendor("far", probe="return 'no device'")
    install_vendor("toy")
    assert choose_vendor(installed_vendors()).name == "toy"


def test_cpu_is_chosen_where_no_chip_is_here(install_vendor: Install):
    install_vendor("far", probe="return 'no device'")
    assert choose_vendor(installed_vendors()) is CPU


def test_named_vendor_is_chosen_among_several(install_vendor: Install):
    install_vendor("toy_a")
    install_vendor("toy_b")
    for name in ("toy_a", "toy_b", "cpu"):
        assert choose_vendor(installed_vendors(), name).name == name


def test_several_available_vendors_are_an_error_that_names_them_and_the_variable(install_vendor: Install):
    install_vendor("toy_a")
    install_vendor("toy_b")
    expected = (
        r"SGLANG_FL_PLATFORM is not set, and several vendors are available: "
        r"toy_a \(sglang-fl-toy_a 0\.0\.1\), toy_b \(sglang-fl-toy_b 0\.0\.1\)\. Set it to one of them"
    )
    with pytest.raises(SettingsError, match=expected):
        choose_vendor(installed_vendors())


def test_vendor_that_is_not_installed_is_an_error_that_lists_what_is(install_vendor: Install):
    install_vendor("toy")
    expected = (
        r"SGLANG_FL_PLATFORM='toyo': no such vendor is installed\. Valid: .*cpu.*toy.*\. Nearest: toy\. "
        r"Install its package, or unset the variable\."
    )
    with pytest.raises(SettingsError, match=expected):
        choose_vendor(installed_vendors(), "toyo")


def test_named_vendor_whose_chip_is_absent_is_an_error_with_the_reason(install_vendor: Install):
    install_vendor("toy", probe="return 'no /dev/toy0'")
    expected = r"'toy': that vendor is installed but not available: no /dev/toy0\. Available: .*cpu"
    with pytest.raises(SettingsError, match=expected):
        choose_vendor(installed_vendors(), "toy")


def test_missing_entry_points_of_core_are_told():
    with pytest.raises(SettingsError, match=r"entry points of sglang-fl-core are missing: group"):
        choose_vendor([])


@pytest.mark.parametrize(
    ("requires", "reason"),
    [
        ((), None),
        (("torch",), None),
        (("no_such_package",), "no_such_package is not installed"),
        (("no_such_package", "torch", "nor_such"), "no_such_package, nor_such is not installed"),
        (("no_such_package.ops",), "no_such_package.ops is not installed"),
    ],
)
def test_requirements_that_are_missing_are_named(requires: tuple[str, ...], reason: str | None):
    impl = OpImpl("rms_norm", BackendKind.FLAGOS, "flagos", "module:function", requires)
    assert why_not_installed(impl) == reason


def test_requirements_are_looked_up_without_importing_them(write_module: Callable[[str], str]):
    module = write_module("raise AssertionError('this module was imported')\n")
    assert why_not_installed(OpImpl("rms_norm", BackendKind.FLAGOS, "flagos", "m:f", (module,))) is None


@pytest.mark.parametrize("name", OPS)
def test_op_is_found_by_its_name(name: str):
    assert Registry.op(name) is OPS[name]


def test_unknown_op_is_an_error_with_the_nearest():
    with pytest.raises(SettingsError, match=r"there is no op 'rms_nrom'\. Valid: .*Nearest: rms_norm\."):
        Registry.op("rms_nrom")


def test_refusal_of_a_vendor_names_the_place_where_it_was_chosen():
    with pytest.raises(SettingsError, match=r"^fl\.yaml: platform='toy': no such vendor is installed"):
        choose_vendor(installed_vendors(), "toy", "fl.yaml: platform")

"""From the environment to a checked configuration."""

import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from sglang_fl.cpu import CPU
from sglang_fl.errors import SettingsError
from sglang_fl.ops import OPS
from sglang_fl.startup import configure
from sglang_fl.vendor import BackendKind

Install = Callable[..., str]

NATIVE = 'OpImpl("rms_norm", VENDOR, "vendor.toy", "no_such_package.kernels:rms_norm"),'


def candidates(op_name: str) -> list[str]:
    return [impl.id for impl in configure().resolutions[op_name].candidates]


def test_without_settings_and_chip_every_op_runs_its_reference():
    configuration = configure()
    assert configuration.registry.vendor is CPU
    assert configuration.resolutions.keys() == OPS.keys()
    assert [candidates(name) for name in OPS] == [["reference"]] * len(OPS)


def test_configuration_is_made_once(monkeypatch: pytest.MonkeyPatch):
    first = configure()
    monkeypatch.setenv("SGLANG_FL_STRICT", "1")
    assert configure() is first


def test_error_is_raised_again_by_the_next_call(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_STRICT", "maybe")
    for _ in range(2):
        with pytest.raises(SettingsError, match=r"SGLANG_FL_STRICT='maybe'"):
            configure()


def test_installed_chip_brings_its_kernels(install_vendor: Install):
    install_vendor("toy", impls=NATIVE)
    assert configure().registry.vendor.name == "toy"
    assert candidates("rms_norm") == ["vendor.toy", "reference"]
    assert candidates("silu_and_mul") == ["reference"]
    assert "no_such_package" not in sys.modules


def test_named_vendor_is_used(install_vendor: Install, monkeypatch: pytest.MonkeyPatch):
    install_vendor("toy", impls=NATIVE)
    monkeypatch.setenv("SGLANG_FL_PLATFORM", "cpu")
    assert configure().registry.vendor is CPU
    assert candidates("rms_norm") == ["reference"]


def test_empty_platform_counts_as_unset(install_vendor: Install, monkeypatch: pytest.MonkeyPatch):
    install_vendor("toy")
    monkeypatch.setenv("SGLANG_FL_PLATFORM", "")
    assert configure().registry.vendor.name == "toy"


def test_unknown_platform_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_PLATFORM", "toy")
    with pytest.raises(
        SettingsError, match=r"SGLANG_FL_PLATFORM='toy': no such vendor is installed\. Valid: cpu"
    ):
        configure()


def test_vendor_defaults_lie_below_the_environment(install_vendor: Install, monkeypatch: pytest.MonkeyPatch):
    install_vendor("toy", defaults={"prefer": "vendor", "strict": "1"})
    monkeypatch.setenv("SGLANG_FL_STRICT", "0")
    configuration = configure()
    assert configuration.settings.prefer is BackendKind.VENDOR
    assert configuration.settings.strict is False
    sources = {setting.variable: setting.source for setting in configuration.explain()}
    assert sources["SGLANG_FL_PREFER"] == "vendor toy"
    assert sources["SGLANG_FL_STRICT"] == "environment"
    assert sources["SGLANG_FL_OOT_ENABLED"] == "default"


def test_defaults_of_a_vendor_that_is_not_used_do_not_count(install_vendor: Install):
    install_vendor("far", probe="return 'no device'", defaults={"prefer": "nonsense"})
    assert configure().settings.prefer is BackendKind.FLAGOS


def test_wrong_vendor_default_is_refused(install_vendor: Install):
    install_vendor("toy", defaults={"prefer": "vendr"})
    with pytest.raises(SettingsError, match=r"SGLANG_FL_PREFER='vendr' \(a default of the vendor package\)"):
        configure()


def test_preferred_kind_and_strictness_reach_the_resolutions(
    install_vendor: Install, monkeypatch: pytest.MonkeyPatch
):
    install_vendor("toy", impls=NATIVE)
    monkeypatch.setenv("SGLANG_FL_PREFER", "reference")
    monkeypatch.setenv("SGLANG_FL_STRICT", "1")
    assert candidates("rms_norm") == ["reference", "vendor.toy"]
    assert all(resolution.strict for resolution in configure().resolutions.values())


@pytest.mark.parametrize("text", ["vendor:toy", "impl:vendor.toy", "vendor"])
def test_order_of_one_op_reaches_its_resolution(
    install_vendor: Install, monkeypatch: pytest.MonkeyPatch, text: str
):
    install_vendor("toy", impls=NATIVE)
    monkeypatch.setenv("SGLANG_FL_PER_OP", f"rms_norm={text}")
    assert candidates("rms_norm") == ["vendor.toy"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "rms_norm=reference|vendor:tooy",
            r"in '.*\|vendor:tooy' there is no vendor 'tooy'\. Valid: cpu, toy\. Nearest: toy\.$",
        ),
        (
            "rms_norm=impl:vendor.tooy",
            r"no implementation of rms_norm 'vendor\.tooy'\. .* vendor\.toy\. Nearest: vendor\.toy\.$",
        ),
        (
            "silu_and_mul=impl:vendor.toy",
            r"no implementation of silu_and_mul 'vendor\.toy'\. Valid: reference",
        ),
        ("silu_and_mul=vendor", r"'silu_and_mul=vendor' cannot be had here: vendor: vendor toy has none"),
    ],
)
def test_order_that_names_what_is_not_there_is_refused(
    install_vendor: Install, monkeypatch: pytest.MonkeyPatch, text: str, match: str
):
    install_vendor("toy", impls=NATIVE)
    monkeypatch.setenv("SGLANG_FL_PER_OP", text)
    with pytest.raises(SettingsError, match=f"^SGLANG_FL_PER_OP: .*{match}"):
        configure()


def test_request_that_cannot_be_met_is_of_no_account_where_layer_2_is_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_PER_OP", "rms_norm=flagos")
    with pytest.raises(SettingsError, match="'rms_norm=flagos' cannot be had here"):
        configure()
    monkeypatch.setenv("SGLANG_FL_OOT_ENABLED", "0")
    assert configure().resolutions == {}


def test_spawned_process_does_not_repeat_what_its_parent_warned_of(
    install: Install, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    install("toy", "import no_such_kernel_library\n")
    monkeypatch.setattr(multiprocessing.current_process(), "name", "scheduler")
    configure()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_unknown_variable_is_one_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setenv("SGLANG_FL_PREFR", "vendor")
    configure()
    configure()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("SGLANG_FL_PREFR: there is no such variable.")
    assert record.getMessage().endswith("Nearest: SGLANG_FL_PREFER.")


@pytest.mark.parametrize("level", ["DEBUG", "ERROR"])
def test_level_of_our_logger_is_what_was_set(monkeypatch: pytest.MonkeyPatch, level: str):
    monkeypatch.setenv("SGLANG_FL_LOG_LEVEL", level)
    configure()
    assert logging.getLogger("sglang_fl").level == getattr(logging, level)


def test_level_of_our_logger_is_the_vendors_default(install_vendor: Install):
    install_vendor("toy", defaults={"log_level": "ERROR"})
    assert configure().settings.log_level == "ERROR"
    assert logging.getLogger("sglang_fl").level == logging.ERROR


def test_broken_vendor_leaves_the_rest_as_it_was(install: Install, caplog: pytest.LogCaptureFixture):
    install("toy", "import no_such_kernel_library\n")
    assert configure().registry.vendor is CPU
    assert "toy" in {vendor.name for vendor in configure().registry.installed}
    assert [record.name for record in caplog.records] == ["sglang_fl.startup"]


def test_importing_the_package_imports_neither_torch_nor_sglang():
    code = "import sys, sglang_fl; print({'torch', 'sglang', 'pydantic'} & sys.modules.keys() or 'none')"
    answer = subprocess.run(
        [sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout == "none\n"

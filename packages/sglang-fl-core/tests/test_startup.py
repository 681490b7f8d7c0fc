"""From the environment to a checked configuration."""

import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sglang_fl.errors import SettingsError
from sglang_fl.ops import OPS
from sglang_fl.registry.cpu import CPU
from sglang_fl.settings import unknown_variables
from sglang_fl.settings.processes import LAUNCHER
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


@pytest.mark.parametrize(
    ("defaults", "fault"),
    [
        ({"prefer": "vendr"}, "SGLANG_FL_PREFER='vendr' (a default of vendor toy): no such backend kind."),
        ({"prefre": "vendor"}, "'prefre' (a default of vendor toy): no such setting."),
        ({"per_op": "rms_nrom=vendor"}, "(a default of vendor toy): there is no op 'rms_nrom'."),
        ({"per_op": "rms_norm=flagos"}, "'rms_norm=flagos' is not available here"),
        ({"oot_blacklist": "RMSNorm", "oot_whitelist": "RMSNorm"}, "exclude each other"),
        ({"deny_vendors": "martian"}, "its default deny_vendors is the user's alone to set"),
        ({"dispatch_log": "/nope/x"}, "its default dispatch_log is the user's alone to set"),
    ],
)
def test_a_vendor_package_with_a_wrong_default_is_left_out_by_name(
    install_vendor: Install,
    monkeypatch,
    caplog: pytest.LogCaptureFixture,
    defaults: dict[str, str],
    fault: str,
):
    install_vendor("toy", defaults=defaults)
    monkeypatch.setenv("SGLANG_FL_STRICT", "1")
    assert configure().registry.vendor is CPU
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("vendor toy (sglang-fl-toy 0.0.1) is left out: ")
    assert fault in message
    configure.cache_clear()
    monkeypatch.setenv("SGLANG_FL_PLATFORM", "toy")
    with pytest.raises(SettingsError, match=r"'toy': that vendor is installed but not available: .*"):
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
        ("silu_and_mul=vendor", r"'silu_and_mul=vendor' is not available here: vendor: vendor toy has none"),
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
    with pytest.raises(SettingsError, match="'rms_norm=flagos' is not available here"):
        configure()
    monkeypatch.setenv("SGLANG_FL_OOT_ENABLED", "0")
    assert configure().resolutions == {}


def test_spawned_process_does_not_repeat_what_its_parent_warned_of(
    install: Install, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    install("toy", "import no_such_kernel_library\n")
    monkeypatch.setattr(multiprocessing.current_process(), "name", "scheduler")
    monkeypatch.setenv(LAUNCHER, "1")
    configure()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(("name", "mark"), [("Process-1", ""), ("MainProcess", "1"), ("MainProcess", "")])
def test_a_process_that_nobody_has_marked_and_a_main_process_have_a_user(
    install: Install, monkeypatch, caplog: pytest.LogCaptureFixture, name: str, mark: str
):
    install("toy", "import no_such_kernel_library\n")
    monkeypatch.setattr(multiprocessing.current_process(), "name", name)
    monkeypatch.setenv(LAUNCHER, mark)
    configure()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert os.environ[LAUNCHER] == str(os.getpid())
    assert unknown_variables() == []


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


def settings_file(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    path = folder / "fl.yaml"
    path.write_text(text)
    monkeypatch.setenv("SGLANG_FL_CONFIG", str(path))
    return f"SGLANG_FL_CONFIG={str(path)!r}: "


def test_file_chooses_the_vendor_and_the_level_of_our_logger(
    install_vendor: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("toy_a", "toy_b"):
        install_vendor(name)
    settings_file(tmp_path, monkeypatch, "platform: toy_b\nlog_level: error\n")
    assert configure().registry.vendor.name == "toy_b"
    assert logging.getLogger("sglang_fl").level == logging.ERROR


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("platform: toyo", "platform='toyo': no such vendor is installed. Valid: cpu, toy. Nearest: toy. "),
        (
            "op_backends: {rms_norm: vendor:toyo}",
            "op_backends: in 'rms_norm=vendor:toyo' there is no vendor 'toyo'. Valid: cpu, toy. Nearest: ",
        ),
        ("op_backends: {silu_and_mul: vendor}", "op_backends: 'silu_and_mul=vendor' is not available here: "),
        (
            "deny_vendors: toyo",
            "deny_vendors='toyo': no vendor 'toyo' is installed. Valid: cpu, toy. Nearest: ",
        ),
        ("{oot_whitelist: RMSNorm, oot_blacklist: RMSNorm}", "oot_whitelist='RMSNorm' and "),
    ],
)
def test_what_a_file_asks_for_and_cannot_be_had_is_refused_with_its_place(
    install_vendor: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
):
    install_vendor("toy", impls=NATIVE)
    file = settings_file(tmp_path, monkeypatch, text)
    with pytest.raises(SettingsError) as error:
        configure()
    assert str(error.value).startswith(file + message)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("SGLANG_FL_DENY_VENDORS", "toy", ["reference"]),
        ("SGLANG_FL_DENY_VENDORS", "cpu", ["vendor.toy", "reference"]),
        ("SGLANG_FL_ALLOW_VENDORS", "toy", ["vendor.toy", "reference"]),
        ("SGLANG_FL_ALLOW_VENDORS", "cpu", ["reference"]),
    ],
)
def test_filters_reach_the_resolutions(
    install_vendor: Install, monkeypatch: pytest.MonkeyPatch, name: str, text: str, expected: list[str]
):
    install_vendor("toy", impls=NATIVE)
    monkeypatch.setenv(name, text)
    assert candidates("rms_norm") == expected


@pytest.mark.parametrize("name", ["SGLANG_FL_ALLOW_VENDORS", "SGLANG_FL_DENY_VENDORS"])
def test_filter_for_a_vendor_that_is_not_installed_is_refused(
    install_vendor: Install, monkeypatch: pytest.MonkeyPatch, name: str
):
    install_vendor("toy")
    monkeypatch.setenv(name, "cpu,tooy")
    match = rf"^{name}='cpu,tooy': no vendor 'tooy' is installed\. Valid: cpu, toy\. Nearest: toy\.$"
    with pytest.raises(SettingsError, match=match):
        configure()


def test_setting_without_effect_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("USE_FLAGGEMS", "1")
    monkeypatch.setenv("SGLANG_FL_FLAGOS_WHITELIST", "mm")
    configure()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "USE_FLAGGEMS, SGLANG_FL_FLAGOS_WHITELIST: no effect: vendor cpu has no ATen kernels (layer 1)"
    )


QUARANTINE = """
import dataclasses
from sglang_fl.vendor import Quarantined

CHIP = dataclasses.replace(CHIP, quarantine=(
    Quarantined("rms_norm", "vendor.toy", "it returns zeros", "pydantic", ">=1", "toy:proof"),
))
"""


@pytest.fixture
def install_quarantined(site: Path, install_vendor: Install) -> None:
    """Install a vendor whose only kernel is in quarantine."""
    package = install_vendor("toy", impls=NATIVE)
    with (site / package / "__init__.py").open("a") as file:
        file.write(QUARANTINE)


def test_kernel_in_quarantine_does_not_run(install_quarantined: None):
    assert candidates("rms_norm") == ["reference"]


@pytest.mark.parametrize("name", ["SGLANG_FL_OOT_WHITELIST", "SGLANG_FL_OOT_BLACKLIST"])
def test_lifted_quarantine_is_one_warning(
    install_quarantined: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
):
    monkeypatch.setenv(name, "!rms_norm")
    assert candidates("rms_norm") == ["vendor.toy", "reference"]
    (record,) = caplog.records
    assert record.getMessage() == (
        "!rms_norm lifts the quarantine of vendor.toy: it returns zeros (pydantic >=1)"
    )


def test_lifting_what_is_in_no_quarantine_is_one_warning(
    install_quarantined: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("SGLANG_FL_OOT_BLACKLIST", "!silu_and_mul")
    configure()
    assert [record.getMessage() for record in caplog.records] == [
        "!silu_and_mul lifts nothing: no implementation of it is in quarantine here"
    ]


@pytest.mark.parametrize(
    ("platform", "fault"),
    [
        ("no.such.Module", "cannot be imported: ModuleNotFoundError: No module named 'no'"),
        ("sglang_fl.errors.NoSuchPlatform", "cannot be imported: VendorError: target"),
        ("sglang_fl.errors.choices", "is no class"),
    ],
)
def test_a_platform_that_is_none_is_told_with_its_vendor(
    install: Install, capsys: pytest.CaptureFixture[str], platform: str, fault: str
):
    from sglang_fl.plugin import activate_platform

    source = (
        "from sglang_fl.vendor import Vendor\n"
        "CHIP = Vendor('toy', 'toydevice', 1, 'sglang_fl.registry.cpu:why_unavailable',"
        f" platform={platform!r})\n"
    )
    install("toy", source)
    with pytest.raises(SystemExit, match="2"):
        activate_platform()
    said = capsys.readouterr().err
    assert said.startswith(f"sglang-fl: vendor toy: its platform {platform!r} {fault}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("has_run", "was_loaded", "told"), [(True, False, 1), (True, True, 0), (False, False, 0)]
)
def test_process_that_ran_a_model_without_plugins_ends_with_one_warning(
    monkeypatch, caplog, has_run: bool, was_loaded: bool, told: int
):
    from sglang_fl import plugin

    monkeypatch.setattr(plugin, "_has_loaded", was_loaded)
    monkeypatch.delitem(sys.modules, plugin.MODEL_RUNNER, raising=False)
    if has_run:
        monkeypatch.setitem(sys.modules, plugin.MODEL_RUNNER, sys)
    plugin._warn_where_never_loaded()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * told

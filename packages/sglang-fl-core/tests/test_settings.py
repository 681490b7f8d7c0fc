"""The one reader of the environment: every variable, every wrong value, and where a value came from."""

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from sglang_fl.errors import SettingsError, choices
from sglang_fl.ops import OPS
from sglang_fl.settings import Settings, SglangSettings, explain, unknown_variables
from sglang_fl.settings.names import NameList
from sglang_fl.settings.policy import parse_order
from sglang_fl.settings.sources import variable
from sglang_fl.vendor import BackendKind, Vendor

DEFAULTS: dict[str, Any] = {
    "use_flaggems": False,
    "flagos_whitelist": NameList(),
    "flagos_blacklist": NameList(),
    "flaggems_record": False,
    "flaggems_log_path": None,
    "flaggems_log_once": True,
    "oot_enabled": True,
    "prefer": BackendKind.FLAGOS,
    "per_op": {},
    "oot_whitelist": NameList(),
    "oot_blacklist": NameList(),
    "strict": False,
    "allow_vendors": (),
    "deny_vendors": (),
    "verify": (),
    "verify_rate": Fraction(1, 64),
    "keep_calls": None,
    "keep_calls_each": False,
    "dispatch_log": None,
    "config": None,
    "platform": None,
    "simulated": None,
    "simulated_record": None,
    "log_level": "INFO",
    "dist_backend": None,
}


def toy(defaults: dict[str, str]) -> Vendor:
    return Vendor("toy", "cpu", 1, "toy:why", defaults=defaults)


def test_each_setting_has_its_default():
    assert dict(Settings.read()) == DEFAULTS


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("oot_enabled", "0", False),
        ("oot_enabled", "1", True),
        ("strict", "1", True),
        ("strict", "0", False),
        ("prefer", "flagos", BackendKind.FLAGOS),
        ("prefer", "vendor", BackendKind.VENDOR),
        ("prefer", "reference", BackendKind.REFERENCE),
        ("per_op", "rms_norm=vendor", {"rms_norm": parse_order("vendor")}),
        (
            "per_op",
            "silu_and_mul=flagos; rms_norm = vendor:toy|impl:flagos.own",
            {"silu_and_mul": parse_order("flagos"), "rms_norm": parse_order("vendor:toy|impl:flagos.own")},
        ),
        ("verify", "rms_norm, silu_and_mul", ("rms_norm", "silu_and_mul")),
        ("verify", "all", (*OPS, "attention")),
        ("verify_rate", "1/8", Fraction(1, 8)),
        ("verify_rate", "1", Fraction(1)),
        ("keep_calls", "calls", Path("calls")),
        ("keep_calls_each", "1", True),
        ("dispatch_log", "logs/dispatch.log", Path("logs/dispatch.log")),
        ("platform", "toy", "toy"),
        ("simulated", "mlu", "mlu"),
        ("simulated_record", "asked.txt", Path("asked.txt")),
        ("use_flaggems", "1", True),
        (
            "flagos_whitelist",
            "mm, add.Tensor,aten::_softmax",
            NameList(("mm", "add.Tensor", "aten::_softmax")),
        ),
        ("flagos_blacklist", "mm,!addmm", NameList(("mm",), ("addmm",))),
        ("flaggems_record", "1", True),
        ("flaggems_log_path", "aten.log", Path("aten.log")),
        ("flaggems_log_once", "0", False),
        ("oot_whitelist", "RMSNorm, silu_and_mul", NameList(("RMSNorm", "silu_and_mul"))),
        ("oot_blacklist", "RMSNorm,!silu_and_mul", NameList(("RMSNorm",), ("silu_and_mul",))),
        ("allow_vendors", "nvidia,toy", ("nvidia", "toy")),
        ("deny_vendors", "mlu", ("mlu",)),
        ("log_level", "DEBUG", "DEBUG"),
        ("log_level", "warning", "WARNING"),
    ],
)
def test_variable_sets_its_setting_and_no_other(
    monkeypatch: pytest.MonkeyPatch, field: str, text: str, value: object
):
    monkeypatch.setenv(variable(field), text)
    assert dict(Settings.read()) == DEFAULTS | {field: value}


@pytest.mark.parametrize("field", DEFAULTS)
def test_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch, field: str):
    monkeypatch.setenv(variable(field), "")
    assert dict(Settings.read()) == DEFAULTS
    assert Settings.read().source(field) == "default"


def test_every_setting_is_tested_here():
    assert DEFAULTS.keys() == Settings.model_fields.keys()


WRONG = [
    ("prefer", "flagso", "no such backend kind. Valid: flagos, reference, sglang, vendor. Nearest: flagos."),
    ("prefer", "cuda", "no such backend kind. Valid: flagos, reference, sglang, vendor."),
    ("strict", "maybe", "neither 1 nor 0."),
    ("oot_enabled", "2", "neither 1 nor 0."),
    ("log_level", "DEBG", "no such level. Valid: DEBUG, ERROR, INFO, WARNING. Nearest: DEBUG."),
    ("log_level", "loud", "no such level. Valid: DEBUG, ERROR, INFO, WARNING."),
    (
        "per_op",
        "silu_and_mul=flagos;rms_nrom=vendor",
        f"there is no op 'rms_nrom'. Valid: {', '.join(sorted(OPS))}. Nearest: rms_norm.",
    ),
    (
        "per_op",
        "rms_norm=vendor|flagso",
        (
            "there is no backend kind 'flagso'. "
            "Valid: flagos, impl:ID, reference, sglang, vendor, vendor:NAME. "
            "Nearest: flagos."
        ),
    ),
    ("per_op", "rms_norm=vendor;", "'' is not of the form op=kind. Write rms_norm=vendor|reference;..."),
    (
        "per_op",
        "rms_norm",
        "'rms_norm' is not of the form op=kind. Write rms_norm=vendor|reference;...",
    ),
    (
        "per_op",
        "=vendor",
        "'=vendor' is not of the form op=kind. Write rms_norm=vendor|reference;...",
    ),
    ("per_op", "rms_norm=", "in '' there is an empty step. Write vendor|reference"),
    ("per_op", "rms_norm=vendor|vendor", "in 'vendor|vendor' the step 'vendor' appears twice"),
    ("per_op", "rms_norm=vendor;rms_norm=flagos", "the op 'rms_norm' appears twice"),
    ("oot_whitelist", "RMSNorm,", "there is an empty name in it. Write RMSNorm,silu_and_mul"),
    (
        "oot_blacklist",
        "RMSNorm;SiluAndMul",
        "'RMSNorm;SiluAndMul' cannot be a name. Write RMSNorm,silu_and_mul",
    ),
    ("oot_blacklist", "RMSNorm, RMSNorm", "'RMSNorm' appears twice"),
    ("flagos_whitelist", "mm,a b", "'a b' cannot be a name. Write mm,add.Tensor"),
    ("flagos_blacklist", ",", "there is an empty name in it. Write mm,add.Tensor"),
    ("allow_vendors", "!toy", "'!toy' cannot be a vendor. Write nvidia,ascend"),
    ("deny_vendors", "toy,toy", "'toy' appears twice"),
    ("verify", "rms_nrom", f"there is no op 'rms_nrom'. {choices('rms_nrom', [*OPS, 'attention', 'all'])}"),
    ("verify_rate", "0.5", "write 1 for every call, or 1/64 for one in so many"),
    ("verify_rate", "1/0", "write 1 for every call, or 1/64 for one in so many"),
    ("use_flaggems", "on off", "neither 1 nor 0."),
    ("dist_backend", "flagcx", "this setting is not implemented in this version. Unset it."),
]


@pytest.mark.parametrize(("field", "text", "reason"), WRONG)
def test_wrong_value_is_quoted_with_what_would_be_right(
    monkeypatch: pytest.MonkeyPatch, field: str, text: str, reason: str
):
    monkeypatch.setenv(variable(field), text)
    with pytest.raises(SettingsError, match=rf"^{re.escape(f'{variable(field)}={text!r}: {reason}')}$"):
        Settings.read()


def test_all_wrong_values_are_told_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_PREFER", "flagso")
    monkeypatch.setenv("SGLANG_FL_STRICT", "maybe")
    monkeypatch.setenv("SGLANG_FL_DIST_BACKEND", "flagcx")
    with pytest.raises(SettingsError, match=r"SGLANG_FL_PREFER='flagso'") as error:
        Settings.read()
    named = {line.partition("=")[0] for line in str(error.value).splitlines()}
    assert named == {"SGLANG_FL_PREFER", "SGLANG_FL_STRICT", "SGLANG_FL_DIST_BACKEND"}


def test_layer_3_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_DIST_BACKEND", "flagcx")
    expected = "SGLANG_FL_DIST_BACKEND='flagcx': this setting is not implemented in this version. Unset it."
    with pytest.raises(SettingsError, match=f"^{re.escape(expected)}$"):
        Settings.read()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("SGLANG_FL_PREFR", "SGLANG_FL_PREFER"),
        ("SGLANG_FL_OOT_ENABLE", "SGLANG_FL_OOT_ENABLED"),
        ("SGLANG_FLAGGEMS_RECROD", "SGLANG_FLAGGEMS_RECORD"),
    ],
)
def test_unknown_variable_is_told_with_the_nearest(monkeypatch: pytest.MonkeyPatch, name: str, nearest: str):
    monkeypatch.setenv(name, "1")
    (complaint,) = unknown_variables()
    assert complaint.startswith(f"{name}: there is no such variable.")
    assert complaint.endswith(f"Nearest: {nearest}.")
    assert dict(Settings.read()) == DEFAULTS


def test_known_and_foreign_variables_are_not_told(monkeypatch: pytest.MonkeyPatch):
    for field in DEFAULTS:
        monkeypatch.setenv(variable(field), "")
    monkeypatch.setenv("SGLANG_PLUGINS", "sglang_fl")
    monkeypatch.setenv("SGLANG_FLASHINFER_WORKSPACE_SIZE", "1")
    assert unknown_variables() == []


def test_every_unknown_variable_is_told(monkeypatch: pytest.MonkeyPatch):
    for name in ("SGLANG_FL_B", "SGLANG_FL_A", "SGLANG_FLAGGEMS_C"):
        monkeypatch.setenv(name, "")
    told = [complaint.partition(":")[0] for complaint in unknown_variables()]
    assert told == ["SGLANG_FLAGGEMS_C", "SGLANG_FL_A", "SGLANG_FL_B"]


def test_variable_in_lower_case_sets_nothing(monkeypatch: pytest.MonkeyPatch):
    # The report of sources and the error messages know the documented spelling alone.
    monkeypatch.setenv("sglang_fl_prefer", "vendor")
    assert Settings.read().prefer is BackendKind.FLAGOS


def test_vendor_default_counts_where_the_environment_says_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_STRICT", "0")
    monkeypatch.setenv("SGLANG_FL_LOG_LEVEL", "")
    read = Settings.read(toy({"prefer": "vendor", "strict": "1", "log_level": "debug"}))
    assert dict(read) == DEFAULTS | {"prefer": BackendKind.VENDOR, "log_level": "DEBUG"}


@pytest.mark.parametrize(("field", "text", "reason"), WRONG)
def test_wrong_vendor_default_says_where_it_comes_from(field: str, text: str, reason: str):
    expected = f"{variable(field)}={text!r} (a default of vendor toy): {reason}"
    with pytest.raises(SettingsError, match=f"^{re.escape(expected)}$"):
        Settings.read(toy({field: text}))


def test_wrong_vendor_default_is_quoted_although_its_variable_is_empty(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_PREFER", "")
    with pytest.raises(SettingsError, match=r"SGLANG_FL_PREFER='vendr' \(a default of vendor toy\)"):
        Settings.read(toy({"prefer": "vendr"}))


def test_wrong_value_is_not_blamed_on_the_vendor(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_PREFER", "flagso")
    with pytest.raises(SettingsError, match=r"^SGLANG_FL_PREFER='flagso': no such backend kind"):
        Settings.read(toy({"prefer": "vendor"}))


def test_vendor_default_that_is_no_setting_is_refused():
    with pytest.raises(SettingsError, match=r"^'prefre' \(a default of vendor toy\): .*Nearest: prefer\.$"):
        Settings.read(toy({"prefre": "vendor"}))


def test_explain_tells_each_value_as_a_user_writes_it_and_its_source(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_PER_OP", "silu_and_mul=flagos; rms_norm=vendor|reference")
    monkeypatch.setenv("SGLANG_FL_STRICT", "yes")
    monkeypatch.setenv("SGLANG_FL_DISPATCH_LOG", "/tmp/dispatch.log")
    monkeypatch.setenv("SGLANG_FL_OOT_ENABLED", "")
    told = {
        setting.variable: (setting.value, setting.source)
        for setting in explain(Settings.read(toy({"prefer": "vendor", "strict": "0"})))
    }
    assert told.keys() == {variable(field) for field in DEFAULTS}
    assert {name: row for name, row in told.items() if row[1] != "default"} == {
        "SGLANG_FL_PREFER": ("vendor", "vendor toy"),
        "SGLANG_FL_PER_OP": ("silu_and_mul=flagos;rms_norm=vendor|reference", "environment"),
        "SGLANG_FL_STRICT": ("1", "environment"),
        "SGLANG_FL_DISPATCH_LOG": ("/tmp/dispatch.log", "environment"),
    }
    assert told["SGLANG_FL_OOT_ENABLED"] == ("1", "default")
    assert told["USE_FLAGGEMS"] == ("0", "default")
    assert told["SGLANG_FL_LOG_LEVEL"] == ("INFO", "default")


def test_explained_values_can_be_set_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_PER_OP", "rms_norm=vendor:toy|impl:flagos.own;silu_and_mul=reference")
    monkeypatch.setenv("SGLANG_FL_OOT_ENABLED", "false")
    monkeypatch.setenv("SGLANG_FL_PREFER", "reference")
    monkeypatch.setenv("SGLANG_FL_OOT_BLACKLIST", "RMSNorm, !rms_norm")
    monkeypatch.setenv("SGLANG_FL_DENY_VENDORS", "toy, mlu")
    read = Settings.read()
    for setting in explain(read):
        monkeypatch.setenv(setting.variable, setting.value)
    assert dict(Settings.read()) == dict(read)


def test_every_setting_says_what_it_does():
    assert all(setting.meaning for setting in explain(Settings.read()))


def test_policy_is_what_was_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_PREFER", "reference")
    monkeypatch.setenv("SGLANG_FL_STRICT", "1")
    monkeypatch.setenv("SGLANG_FL_PER_OP", "rms_norm=vendor")
    monkeypatch.setenv("SGLANG_FL_ALLOW_VENDORS", "toy")
    monkeypatch.setenv("SGLANG_FL_DENY_VENDORS", "mlu")
    monkeypatch.setenv("SGLANG_FL_OOT_WHITELIST", "!silu_and_mul")
    monkeypatch.setenv("SGLANG_FL_OOT_BLACKLIST", "RMSNorm,!rms_norm")
    policy = Settings.read().policy
    assert (policy.allow_vendors, policy.deny_vendors) == (("toy",), ("mlu",))
    assert policy.lifted == {"rms_norm", "silu_and_mul"}
    assert policy.prefer is BackendKind.REFERENCE
    assert policy.strict
    assert policy.per_op == {"rms_norm": parse_order("vendor")}


def test_variables_of_sglang_are_read_apart_from_ours(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SGLANG_PLATFORM", raising=False)
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    monkeypatch.delenv("SGLANG_FORCE_FUSED_OP_BACKEND", raising=False)
    monkeypatch.delenv("SGLANG_PLUGINS", raising=False)
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    monkeypatch.setenv("SGLANG_FL_PLATFORM", "toy")
    assert vars(SglangSettings.read()) == {
        "platform": None,
        "use_cpu_engine": "0",
        "force_fused_op_backend": None,
        "plugins": None,
        "has_metrics": False,
    }
    monkeypatch.setenv("SGLANG_PLATFORM", "sglang_fl")
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    monkeypatch.setenv("SGLANG_FORCE_FUSED_OP_BACKEND", "torch")
    monkeypatch.setenv("SGLANG_PLUGINS", "sglang_fl")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "metrics")
    assert vars(SglangSettings.read()) == {
        "platform": "sglang_fl",
        "use_cpu_engine": "1",
        "force_fused_op_backend": "torch",
        "plugins": "sglang_fl",
        "has_metrics": True,
    }
    assert Settings.read().platform == "toy"


@pytest.mark.parametrize("text", ["logs/\udcff.log", "wei\u00df.log"])
def test_path_is_kept_as_the_file_system_has_it_and_can_be_shown(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("SGLANG_FL_DISPATCH_LOG", text)
    assert Settings.read().dispatch_log == Path(text)
    (shown,) = (row for row in explain(Settings.read()) if row.variable == "SGLANG_FL_DISPATCH_LOG")
    assert shown.value.encode("utf-8")


def test_long_value_is_quoted_in_part(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_PREFER", "x" * 10_000)
    with pytest.raises(SettingsError, match=r"^SGLANG_FL_PREFER='x+\.\.\.': no such backend kind") as error:
        Settings.read()
    assert len(str(error.value)) < 500

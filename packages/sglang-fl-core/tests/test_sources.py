"""Environment over file over vendor: whose word counts, and how a file's wrong values are told."""

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from sglang_fl.errors import SettingsError
from sglang_fl.settings import Settings, explain
from sglang_fl.settings.policy import parse_order
from sglang_fl.settings.sources import collect, file_key, variable
from sglang_fl.vendor import BackendKind, Vendor


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """``write(text)`` makes it the settings file of this test."""

    def write(text: str) -> Path:
        path = tmp_path / "fl.yaml"
        path.write_text(text)
        monkeypatch.setenv("SGLANG_FL_CONFIG", str(path))
        return path

    return write


def toy(**defaults: str) -> Vendor:
    return Vendor("toy", "cpu", 1, "toy:why", defaults=defaults)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("prefer", ("SGLANG_FL_PREFER", "prefer")),
        ("per_op", ("SGLANG_FL_PER_OP", "op_backends")),
        ("use_flaggems", ("USE_FLAGGEMS", "use_flaggems")),
        ("flaggems_log_once", ("SGLANG_FLAGGEMS_LOG_ONCE", "flaggems_log_once")),
        ("flagos_whitelist", ("SGLANG_FL_FLAGOS_WHITELIST", "flagos_whitelist")),
        ("config", ("SGLANG_FL_CONFIG", None)),
    ],
)
def test_variable_and_key_of_a_setting(name: str, expected: tuple[str, str | None]):
    assert (variable(name), file_key(name)) == expected


WRITTEN = {
    "use_flaggems: true": ("use_flaggems", True),
    "flagos_whitelist: [mm, add.Tensor]": ("flagos_whitelist", "mm,add.Tensor"),
    "flagos_blacklist: mm,addmm": ("flagos_blacklist", "mm,addmm"),
    "flaggems_record: 1": ("flaggems_record", True),
    "flaggems_log_path: aten.log": ("flaggems_log_path", Path("aten.log")),
    "flaggems_log_once: off": ("flaggems_log_once", False),
    "oot_enabled: no": ("oot_enabled", False),
    "prefer: vendor": ("prefer", BackendKind.VENDOR),
    "op_backends: {rms_norm: vendor|reference}": ("per_op", {"rms_norm": parse_order("vendor|reference")}),
    "op_backends: {rms_norm: [vendor, reference]}": ("per_op", {"rms_norm": parse_order("vendor|reference")}),
    "oot_whitelist: [RMSNorm, '!silu_and_mul']": ("oot_whitelist", "RMSNorm,!silu_and_mul"),
    "oot_blacklist:\n- RMSNorm\n- rms_norm": ("oot_blacklist", "RMSNorm,rms_norm"),
    "strict: True": ("strict", True),
    "allow_vendors: [nvidia, toy]": ("allow_vendors", ("nvidia", "toy")),
    "deny_vendors: mlu": ("deny_vendors", ("mlu",)),
    "verify: [rms_norm, relu2]": ("verify", ("rms_norm", "relu2")),
    "verify_rate: 1/8": ("verify_rate", Fraction(1, 8)),
    "keep_calls: calls": ("keep_calls", Path("calls")),
    "keep_calls_each: 1": ("keep_calls_each", True),
    "dispatch_log: logs/dispatch.log": ("dispatch_log", Path("logs/dispatch.log")),
    "platform: cpu": ("platform", "cpu"),
    "simulated: mlu": ("simulated", "mlu"),
    "simulated_record: asked.txt": ("simulated_record", Path("asked.txt")),
    "log_level: debug": ("log_level", "DEBUG"),
}


@pytest.mark.parametrize(("text", "expected"), WRITTEN.items(), ids=WRITTEN)
def test_key_sets_its_setting_and_no_other(
    write: Callable[[str], Path], text: str, expected: tuple[str, object]
):
    path, before = write(text), dict(Settings())
    read, (name, value) = Settings.read(), expected
    shown = getattr(read, name)
    assert (str(shown) if name.endswith("list") else shown) == value
    assert read.source(name) == str(path)
    others = {other for other in before if dict(read)[other] != before[other]}
    assert others == {name, "config"}


def test_every_key_is_tested_here():
    tested = {name for name, _ in WRITTEN.values()}
    assert tested == Settings.model_fields.keys() - {"config", "dist_backend"}


def test_environment_stands_over_file_over_vendor_over_default(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    path = write("prefer: vendor\nstrict: 1\n")
    monkeypatch.setenv("SGLANG_FL_PREFER", "reference")
    read = Settings.read(toy(prefer="flagos", strict="0", log_level="ERROR"))
    assert (read.prefer, read.strict, read.log_level) == (BackendKind.REFERENCE, True, "ERROR")
    sources = {setting.variable: setting.source for setting in explain(read)}
    assert sources["SGLANG_FL_PREFER"] == "environment"
    assert sources["SGLANG_FL_STRICT"] == str(path)
    assert sources["SGLANG_FL_LOG_LEVEL"] == "vendor toy"
    assert sources["SGLANG_FL_OOT_ENABLED"] == "default"
    assert sources["SGLANG_FL_CONFIG"] == "environment"


def test_order_of_an_op_is_taken_from_one_place(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    write("op_backends: {rms_norm: vendor}\n")
    monkeypatch.setenv("SGLANG_FL_PER_OP", "silu_and_mul=reference")
    assert Settings.read().per_op == {"silu_and_mul": parse_order("reference")}


@pytest.mark.parametrize("empty", ["", " ~", " null", ' ""', " []", " {}"])
@pytest.mark.parametrize("key", ["prefer", "oot_whitelist", "op_backends", "platform"])
def test_key_without_a_value_counts_as_unset(write: Callable[[str], Path], key: str, empty: str):
    write(f"{key}:{empty}\n")
    assert dict(Settings.read()) | {"config": None} == dict(Settings.model_construct())


def test_empty_variable_leaves_the_files_word(write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch):
    write("prefer: vendor\n")
    monkeypatch.setenv("SGLANG_FL_PREFER", "")
    assert Settings.read().prefer is BackendKind.VENDOR


@pytest.mark.parametrize("user", ["oot_whitelist", "oot_blacklist"])
def test_list_of_the_user_replaces_both_of_the_vendor(monkeypatch: pytest.MonkeyPatch, user: str):
    vendor = toy(oot_blacklist="RotaryEmbedding", flagos_blacklist="mm")
    assert Settings.read(vendor).oot_blacklist.names == ("RotaryEmbedding",)
    monkeypatch.setenv(variable(user), "RMSNorm")
    read = Settings.read(vendor)
    assert {name: getattr(read, name).names for name in ("oot_whitelist", "oot_blacklist")} == {
        "oot_whitelist": (),
        "oot_blacklist": (),
    } | {user: ("RMSNorm",)}
    assert read.flagos_blacklist.names == ("mm",)


WRONG = {
    "prefre: vendor": "prefre='vendor': no such key. Valid: allow_vendors, ",
    "per_op: {rms_norm: vendor}": "per_op='rms_norm=vendor': no such key. ",
    "config: other.yaml": "config='other.yaml': no such key. ",
    "SGLANG_FL_PREFER: vendor": "SGLANG_FL_PREFER='vendor': no such key. ",
    "prefer: flagso": "prefer='flagso': no such backend kind. Valid: flagos, reference, sglang, vendor. ",
    "prefer: [vendor]": "prefer='vendor': it must be a single value",
    "strict: maybe": "strict='maybe': neither 1 nor 0.",
    "strict: {a: b}": "strict='a=b': it must be a single value",
    "log_level: [DEBUG]": "log_level='DEBUG': it must be a single value",
    'dispatch_log: "a\\0b"': "dispatch_log='a\\x00b': a path cannot hold a null character",
    'dispatch_log: "\\ud800"': "dispatch_log='\\ud800': no file system can hold this name",
    "op_backends: vendor": "op_backends='vendor': it must have a line for each op. Write rms_norm: ",
    "op_backends: [vendor]": "op_backends='vendor': it must have a line for each op.",
    "op_backends: {rms_norm: {a: b}}": "op_backends='rms_norm=a=b': it must have a line for each op.",
    "op_backends: {rms_nrom: vendor}": "op_backends='rms_nrom=vendor': there is no op 'rms_nrom'. Valid: ",
    "op_backends: {rms_norm: vndor}": "op_backends='rms_norm=vndor': there is no backend kind 'vndor'. ",
    "op_backends: {rms_norm: }": "op_backends='rms_norm=': in '' there is an empty step.",
    "op_backends: {rms_norm: [vendor, vendor]}": "op_backends='rms_norm=vendor,vendor': in 'vendor|vendor' ",
    'op_backends: {"rms_norm=vendor;silu_and_mul": flagos}': (
        "op_backends='rms_norm=vendor;silu_and_mul=flagos': there is no op 'rms_norm=vendor;silu_and_mul'."
    ),
    "oot_whitelist: {a: b}": "oot_whitelist='a=b': it must be a list of names. Write [one, two]",
    "oot_whitelist: [[RMSNorm]]": "oot_whitelist='RMSNorm': it must be a list of names.",
    "oot_whitelist: [RMSNorm, ~]": "oot_whitelist='RMSNorm,': there is an empty name in it.",
    "oot_whitelist: ['a,b']": "oot_whitelist='a,b': 'a,b' cannot be a name.",
    "deny_vendors: ['!toy']": "deny_vendors='!toy': '!toy' cannot be a vendor.",
    "dist_backend: flagcx": "dist_backend='flagcx': this setting is not implemented in this version.",
    "strict: 1\nstrict: 1": "line 2, 'strict: 1': the key 'strict' appears twice",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items(), ids=WRONG)
def test_wrong_value_in_a_file_is_one_message_with_file_and_key(
    write: Callable[[str], Path], text: str, message: str
):
    path = write(text)
    expected = f"SGLANG_FL_CONFIG={str(path)!r}: {message}"
    with pytest.raises(SettingsError, match=f"^{re.escape(expected)}") as error:
        Settings.read()
    assert len(str(error.value).splitlines()) == 1


def test_unknown_key_is_told_with_the_nearest(write: Callable[[str], Path]):
    write("oot_blaklist: [RMSNorm]\n")
    with pytest.raises(SettingsError, match=r"Nearest: oot_blacklist\.$"):
        Settings.read()


def test_wrong_value_under_a_right_variable_is_still_told(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    # Its shape alone is looked at: what it means would count only without the variable.
    write("prefer: [vendor]\n")
    monkeypatch.setenv("SGLANG_FL_PREFER", "reference")
    with pytest.raises(SettingsError, match="prefer='vendor': it must be a single value"):
        Settings.read()


def test_wrong_values_of_file_and_environment_are_told_at_once(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
):
    write("prefre: vendor\nstrict: [1]\n")
    monkeypatch.setenv("SGLANG_FL_LOG_LEVEL", "loud")
    with pytest.raises(SettingsError, match="prefre") as error:
        Settings.read()
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert [line.partition("=")[0] for line in lines] == ["SGLANG_FL_CONFIG"] * 2 + ["SGLANG_FL_LOG_LEVEL"]


def test_file_is_not_looked_for_without_its_variable():
    given, complaints = collect(Settings.model_fields, {}, None)
    assert (given, complaints) == ({}, [])

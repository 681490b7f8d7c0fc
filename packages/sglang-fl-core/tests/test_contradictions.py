"""Settings that are right by themselves, but not together."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sglang_fl.errors import SettingsError
from sglang_fl.registry.cpu import CPU
from sglang_fl.settings import Settings
from sglang_fl.settings.contradictions import refuse_contradictions, without_effect
from sglang_fl.vendor import AtenOffer, Vendor


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Settings]:
    """``read(environment, file)`` reads settings; ``FILE`` in what is expected stands for the file."""

    def read(environment: dict[str, str], file: str = "", vendor: Vendor | None = None) -> Settings:
        monkeypatch.chdir(tmp_path)
        if file:
            Path("fl.yaml").write_text(file)
            monkeypatch.setenv("SGLANG_FL_CONFIG", "fl.yaml")
        for name, text in environment.items():
            monkeypatch.setenv(name, text)
        return Settings.read(vendor)

    return read


FILE = "SGLANG_FL_CONFIG='fl.yaml': "
REFUSED = {
    "lists": (
        {"SGLANG_FL_OOT_WHITELIST": "RMSNorm", "SGLANG_FL_OOT_BLACKLIST": "SiluAndMul"},
        "",
        (
            "SGLANG_FL_OOT_WHITELIST='RMSNorm' and SGLANG_FL_OOT_BLACKLIST='SiluAndMul' exclude each other. "
            "Keep one."
        ),
    ),
    "list-and-file": (
        {"SGLANG_FL_OOT_WHITELIST": "RMSNorm"},
        "oot_blacklist: [SiluAndMul, rms_norm]",
        f"SGLANG_FL_OOT_WHITELIST='RMSNorm' and {FILE}oot_blacklist='SiluAndMul,rms_norm' exclude each",
    ),
    "lists-in-file": (
        {},
        "flagos_whitelist: mm\nflagos_blacklist: addmm",
        f"{FILE}flagos_whitelist='mm' and {FILE}flagos_blacklist='addmm' exclude each other.",
    ),
    "aten-lists": (
        {"SGLANG_FL_FLAGOS_WHITELIST": "mm", "SGLANG_FL_FLAGOS_BLACKLIST": "mm"},
        "",
        "SGLANG_FL_FLAGOS_WHITELIST='mm' and SGLANG_FL_FLAGOS_BLACKLIST='mm' exclude each other.",
    ),
    "filters": (
        {"SGLANG_FL_ALLOW_VENDORS": "toy,nvidia", "SGLANG_FL_DENY_VENDORS": "nvidia"},
        "",
        (
            "SGLANG_FL_ALLOW_VENDORS='toy,nvidia' and SGLANG_FL_DENY_VENDORS='nvidia': "
            "the vendor 'nvidia' cannot be both allowed and denied."
        ),
    ),
    "filter-and-file": (
        {"SGLANG_FL_DENY_VENDORS": "nvidia"},
        "allow_vendors: nvidia",
        f"{FILE}allow_vendors='nvidia' and SGLANG_FL_DENY_VENDORS='nvidia': the vendor 'nvidia'",
    ),
    "denied": (
        {"SGLANG_FL_PER_OP": "rms_norm=reference|vendor:toy", "SGLANG_FL_DENY_VENDORS": "toy"},
        "",
        (
            "SGLANG_FL_PER_OP: 'rms_norm=reference|vendor:toy' is not available: the vendor toy is denied "
            "(SGLANG_FL_DENY_VENDORS)."
        ),
    ),
    "denied-implementation": (
        {"SGLANG_FL_PER_OP": "rms_norm=impl:vendor.toy.fast", "SGLANG_FL_DENY_VENDORS": "toy"},
        "",
        "SGLANG_FL_PER_OP: 'rms_norm=impl:vendor.toy.fast' is not available: the vendor toy is denied",
    ),
    "not-allowed": (
        {"SGLANG_FL_ALLOW_VENDORS": "nvidia"},
        "op_backends: {rms_norm: [vendor:toy]}",
        (
            f"{FILE}op_backends: 'rms_norm=vendor:toy' is not available: the vendor toy is not among the "
            f"allowed ones (SGLANG_FL_ALLOW_VENDORS)."
        ),
    ),
    "record-without-file": (
        {"USE_FLAGGEMS": "1", "SGLANG_FLAGGEMS_RECORD": "1"},
        "",
        "SGLANG_FLAGGEMS_RECORD='1': SGLANG_FLAGGEMS_LOG_PATH names no file for the record. Set it.",
    ),
    "lift": (
        {"SGLANG_FL_OOT_BLACKLIST": "RotaryEmbedding,!rms_nrom"},
        "",
        "SGLANG_FL_OOT_BLACKLIST='RotaryEmbedding,!rms_nrom': there is no op 'rms_nrom'. Valid: ",
    ),
}


@pytest.mark.parametrize(("environment", "file", "message"), REFUSED.values(), ids=REFUSED)
def test_contradiction_is_refused_with_both_places(
    read: Callable[..., Settings], environment: dict[str, str], file: str, message: str
):
    settings = read(environment, file)
    with pytest.raises(SettingsError) as error:
        refuse_contradictions(settings)
    assert str(error.value).startswith(message)
    assert len(str(error.value).splitlines()) == 1


ACCEPTED = {
    "lift-beside-list": {"SGLANG_FL_OOT_WHITELIST": "!rms_norm", "SGLANG_FL_OOT_BLACKLIST": "RMSNorm"},
    "other-filters": {"SGLANG_FL_ALLOW_VENDORS": "toy", "SGLANG_FL_DENY_VENDORS": "nvidia"},
    "all-vendors": {"SGLANG_FL_PER_OP": "rms_norm=vendor|reference", "SGLANG_FL_DENY_VENDORS": "toy"},
    "other-vendor": {"SGLANG_FL_PER_OP": "rms_norm=vendor:toy", "SGLANG_FL_DENY_VENDORS": "nvidia"},
    "record-without-layer-1": {"SGLANG_FLAGGEMS_RECORD": "1"},
    "own-kernels": {"SGLANG_FL_PER_OP": "rms_norm=impl:flagos", "SGLANG_FL_ALLOW_VENDORS": "toy"},
}


@pytest.mark.parametrize("environment", ACCEPTED.values(), ids=ACCEPTED)
def test_what_can_hold_together_is_accepted(read: Callable[..., Settings], environment: dict[str, str]):
    refuse_contradictions(read(environment))


def test_all_contradictions_are_told_at_once(read: Callable[..., Settings]):
    settings = read(
        {
            "SGLANG_FL_OOT_WHITELIST": "RMSNorm",
            "SGLANG_FL_OOT_BLACKLIST": "RMSNorm",
            "SGLANG_FL_ALLOW_VENDORS": "toy",
            "SGLANG_FL_DENY_VENDORS": "toy",
        }
    )
    with pytest.raises(SettingsError, match="SGLANG_FL_OOT_WHITELIST") as error:
        refuse_contradictions(settings)
    assert len(str(error.value).splitlines()) == 2


OFFER = AtenOffer("toy:ops", "toy:kernels")
CHIPS = {
    "offers": Vendor("toy", "cpu", 1, "toy:why", aten=OFFER),
    "has-none": CPU,
    "lacks-library": Vendor(
        "toy", "cpu", 1, "toy:why", aten=AtenOffer("toy:ops", "toy:kernels", ("no_such_library",))
    ),
}
ABSENT = "vendor cpu has no ATen kernels (layer 1)"
MISSING = "no_such_library is not installed, whose ATen kernels layer 1 needs"
OFF = "USE_FLAGGEMS=0 switches layer 1 (ATen ops) off"
EVERYTHING = {
    "USE_FLAGGEMS": "1",
    "SGLANG_FL_FLAGOS_WHITELIST": "mm",
    "SGLANG_FLAGGEMS_RECORD": "1",
    "SGLANG_FLAGGEMS_LOG_PATH": "aten.log",
}
NAMED = "USE_FLAGGEMS, SGLANG_FL_FLAGOS_WHITELIST, SGLANG_FLAGGEMS_RECORD, SGLANG_FLAGGEMS_LOG_PATH"
IDLE = {
    "nothing": ("has-none", {}, "", []),
    "off": ("has-none", {"USE_FLAGGEMS": "0", "SGLANG_FLAGGEMS_RECORD": "0"}, "", []),
    "on": ("has-none", {"USE_FLAGGEMS": "1"}, "", [f"USE_FLAGGEMS: no effect: {ABSENT}"]),
    "all": ("has-none", EVERYTHING, "", [f"{NAMED}: no effect: {ABSENT}"]),
    "all-without-library": ("lacks-library", EVERYTHING, "", [f"{NAMED}: no effect: {MISSING}"]),
    "all-of-a-chip": ("offers", EVERYTHING, "", []),
    "nothing-without-library": ("lacks-library", {}, "", []),
    "list": (
        "has-none",
        {"SGLANG_FL_FLAGOS_BLACKLIST": "mm"},
        "",
        [f"SGLANG_FL_FLAGOS_BLACKLIST: no effect: {ABSENT}"],
    ),
    "lift": (
        "has-none",
        {"SGLANG_FL_FLAGOS_BLACKLIST": "!mm"},
        "",
        [f"SGLANG_FL_FLAGOS_BLACKLIST: no effect: {ABSENT}"],
    ),
    "file": ("has-none", {}, "use_flaggems: 1", [f"{FILE}use_flaggems: no effect: {ABSENT}"]),
    "list-while-off": (
        "offers",
        {"USE_FLAGGEMS": "0", "SGLANG_FL_FLAGOS_WHITELIST": "mm"},
        "",
        [f"SGLANG_FL_FLAGOS_WHITELIST: no effect: {OFF}"],
    ),
    "record-while-off": (
        "has-none",
        {"USE_FLAGGEMS": "0", "SGLANG_FLAGGEMS_RECORD": "1", "SGLANG_FLAGGEMS_LOG_PATH": "aten.log"},
        "",
        [f"SGLANG_FLAGGEMS_RECORD, SGLANG_FLAGGEMS_LOG_PATH: no effect: {OFF}"],
    ),
    "path-without-record": (
        "offers",
        {"SGLANG_FLAGGEMS_LOG_PATH": "aten.log"},
        "",
        ["SGLANG_FLAGGEMS_LOG_PATH: no effect: SGLANG_FLAGGEMS_RECORD is not 1"],
    ),
    "once-without-record": (
        "offers",
        {"SGLANG_FLAGGEMS_LOG_ONCE": "0"},
        "",
        ["SGLANG_FLAGGEMS_LOG_ONCE: no effect: SGLANG_FLAGGEMS_RECORD is not 1"],
    ),
    "rate-of-nothing": (
        "offers",
        {"SGLANG_FL_VERIFY_RATE": "1/8"},
        "",
        ["SGLANG_FL_VERIFY_RATE: no effect: SGLANG_FL_VERIFY names no op"],
    ),
    "record-of-no-chip": (
        "offers",
        {"SGLANG_FL_SIMULATED_RECORD": "asked.txt"},
        "",
        ["SGLANG_FL_SIMULATED_RECORD: no effect: SGLANG_FL_SIMULATED names no chip"],
    ),
    "all-of-layer-2-off": (
        "offers",
        {
            "SGLANG_FL_OOT_ENABLED": "0",
            "SGLANG_FL_STRICT": "1",
            "SGLANG_FL_VERIFY": "rms_norm",
            "SGLANG_FL_VERIFY_RATE": "1",
            "SGLANG_FL_ALLOW_VENDORS": "nvidia",
            "SGLANG_FL_DISPATCH_LOG": "d.log",
        },
        "",
        [
            (
                "SGLANG_FL_STRICT, SGLANG_FL_ALLOW_VENDORS, SGLANG_FL_VERIFY, SGLANG_FL_VERIFY_RATE, "
                "SGLANG_FL_DISPATCH_LOG: no effect: SGLANG_FL_OOT_ENABLED=0 switches layer 2 (fused ops) off"
            )
        ],
    ),
    "verified-ops-are-sglangs": (
        "offers",
        {
            "SGLANG_FL_PER_OP": "rms_norm=sglang",
            "SGLANG_FL_OOT_BLACKLIST": "relu2",
            "SGLANG_FL_VERIFY": "rms_norm,relu2,silu_and_mul",
        },
        "",
        ["SGLANG_FL_VERIFY: no effect on rms_norm, relu2: SGLang's own runs there by your settings"],
    ),
    "every-op-is-sglangs": (
        "offers",
        {"SGLANG_FL_PREFER": "sglang", "SGLANG_FL_VERIFY": "all", "SGLANG_FL_STRICT": "1"},
        "",
        [
            "SGLANG_FL_VERIFY: no effect on every op: SGLang's own runs there by your settings",
            "SGLANG_FL_STRICT: no effect: SGLANG_FL_PREFER='sglang' leaves every op to SGLang",
        ],
    ),
    "layer-2-off": (
        "offers",
        {"SGLANG_FL_OOT_ENABLED": "0", "SGLANG_FL_OOT_BLACKLIST": "RMSNorm", "SGLANG_FL_PREFER": "vendor"},
        "op_backends: {rms_norm: vendor}",
        [
            (
                f"{FILE}op_backends, SGLANG_FL_OOT_BLACKLIST, SGLANG_FL_PREFER: no effect: "
                "SGLANG_FL_OOT_ENABLED=0 switches layer 2 (fused ops) off"
            )
        ],
    ),
}


@pytest.mark.parametrize(("chip", "environment", "file", "lines"), IDLE.values(), ids=IDLE)
def test_setting_that_does_nothing_is_told_once(
    read: Callable[..., Settings], chip: str, environment: dict[str, str], file: str, lines: list[str]
):
    vendor = CHIPS[chip]
    assert without_effect(read(environment, file, vendor), vendor) == lines


def test_default_of_a_vendor_is_not_told_as_the_users_wish():
    vendor = Vendor("toy", "cpu", 1, "toy:why", defaults={"use_flaggems": "1", "flagos_blacklist": "mm"})
    assert without_effect(Settings.read(vendor), vendor) == []

"""Order tokens, and the order of each op."""

import pytest

from sglang_fl.errors import SettingsError, choices, nearest
from sglang_fl.ops import OPS
from sglang_fl.settings.policy import Policy, Token, parse_order, parse_orders
from sglang_fl.vendor import BackendKind, OpImpl

FLAGOS, VENDOR, REFERENCE = BackendKind.FLAGOS, BackendKind.VENDOR, BackendKind.REFERENCE
IMPLS = [
    OpImpl("rms_norm", kind, name, "module:function")
    for kind, name in [
        (FLAGOS, "flagos"),
        (FLAGOS, "flagos.flag_gems"),
        (VENDOR, "vendor.toy"),
        (VENDOR, "vendor.toy.fast"),
        (VENDOR, "vendor.toys"),
        (REFERENCE, "reference"),
    ]
]


@pytest.mark.parametrize(
    ("token", "ids"),
    [
        ("flagos", ["flagos", "flagos.flag_gems"]),
        ("vendor", ["vendor.toy", "vendor.toy.fast", "vendor.toys"]),
        ("reference", ["reference"]),
        ("vendor:toy", ["vendor.toy", "vendor.toy.fast"]),
        ("vendor:to", []),
        ("vendor:flag_gems", []),
        ("impl:flagos", ["flagos"]),
        ("impl:flagos.flag_gems", ["flagos.flag_gems"]),
        ("impl:vendor.toy", ["vendor.toy"]),
        ("impl:toy", []),
    ],
)
def test_token_selects(token: str, ids: list[str]):
    assert [impl.id for impl in IMPLS if Token(token).selects(impl)] == ids
    assert str(Token(token)) == token


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("flagso", " Nearest: flagos."),
        ("Vendor", " Nearest: vendor."),
        ("referense", " Nearest: reference."),
        ("impl:", " Nearest: impl:ID."),
        ("vendor:a b", ""),
        ("kind:flagos", ""),
        ("xyz", ""),
        ("", ""),
    ],
)
def test_unknown_token_is_refused_with_the_valid_ones(text: str, nearest: str):
    with pytest.raises(SettingsError, match=f"^there is no backend kind {text!r}. Valid: ") as error:
        Token(text)
    message = str(error.value)
    for valid in ("flagos", "impl:ID", "reference", "sglang", "vendor", "vendor:NAME"):
        assert valid in message
    assert nearest in message


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("vendor", ["vendor"]),
        ("vendor|reference", ["vendor", "reference"]),
        (" vendor:toy | impl:flagos.flag_gems ", ["vendor:toy", "impl:flagos.flag_gems"]),
    ],
)
def test_order_is_parsed_step_by_step(text: str, tokens: list[str]):
    assert [str(token) for token in parse_order(text)] == tokens


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"in '' there is an empty step\. Write vendor\|reference"),
        ("vendor|", r"in 'vendor\|' there is an empty step"),
        ("vendor||reference", r"in 'vendor\|\|reference' there is an empty step"),
        ("vendor|flagso", r"no backend kind 'flagso'\. .* Nearest: flagos\."),
        ("vendor|reference| vendor", r"the step 'vendor' appears twice"),
    ],
)
def test_malformed_order_is_refused(text: str, match: str):
    with pytest.raises(SettingsError, match=match):
        parse_order(text)


@pytest.mark.parametrize(
    ("prefer", "order"),
    [
        (FLAGOS, ["flagos", "vendor", "reference"]),
        (VENDOR, ["vendor", "flagos", "reference"]),
        (REFERENCE, ["reference", "flagos", "vendor"]),
    ],
)
def test_preferred_kind_comes_first_and_no_kind_is_lost(prefer: BackendKind, order: list[str]):
    assert [str(token) for token in Policy(prefer=prefer).order("rms_norm")] == order


def test_order_of_one_op_is_all_that_counts_for_it():
    policy = Policy(prefer=VENDOR, per_op={"rms_norm": parse_order("reference")})
    assert policy.order("rms_norm") == (Token("reference"),)
    assert policy.order("silu_and_mul")[0] == Token("vendor")


def test_policy_without_settings_prefers_flagos_and_falls_back():
    policy = Policy()
    assert policy.prefer is FLAGOS
    assert not policy.strict


@pytest.mark.parametrize(
    "value",
    [
        "silu_and_mul=flagos; rms_norm = vendor|reference",
        {"silu_and_mul": "flagos", "rms_norm": "vendor|reference"},
        {"silu_and_mul": ["flagos"], "rms_norm": ["vendor", "reference"]},
    ],
)
def test_orders_of_ops_are_a_text_or_a_mapping(value: str | dict[str, str | list[str]]):
    orders = {"silu_and_mul": parse_order("flagos"), "rms_norm": parse_order("vendor|reference")}
    assert parse_orders(value) == orders


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("rms_norm", "'rms_norm' is not of the form op=kind"),
        ("rms_norm=vendor;rms_norm=flagos", "the op 'rms_norm' appears twice"),
        ({"rms_nrom": "vendor"}, "there is no op 'rms_nrom'. .* Nearest: rms_norm"),
        ({"rms_norm": []}, "in '' there is an empty step"),
        ({"rms_norm": ["vendor", "vndor"]}, "there is no backend kind 'vndor'"),
    ],
)
def test_malformed_orders_are_refused(value: str | dict[str, str | list[str]], match: str):
    with pytest.raises(SettingsError, match=match):
        parse_orders(value)


@pytest.mark.parametrize(
    ("token", "vendor"),
    [
        ("vendor", None),
        ("flagos", None),
        ("vendor:toy", "toy"),
        ("impl:vendor.toy.fast", "toy"),
        ("impl:flagos.own", None),
        ("impl:reference", None),
    ],
)
def test_token_names_a_vendor(token: str, vendor: str | None):
    assert Token(token).vendor == vendor


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Policy(), None),
        (Policy(allow_vendors=("toy",)), None),
        (Policy(deny_vendors=("far",)), None),
        (Policy(deny_vendors=("far", "toy")), "the vendor toy is denied (SGLANG_FL_DENY_VENDORS)"),
        (
            Policy(allow_vendors=("far",), titles={"allow_vendors": "fl.yaml: allow_vendors"}),
            "the vendor toy is not among the allowed ones (fl.yaml: allow_vendors)",
        ),
    ],
)
def test_vendor_is_denied_with_the_reason(policy: Policy, reason: str | None):
    assert policy.why_denied("toy") == reason


@pytest.mark.parametrize(
    ("text", "near"),
    [("VENDOR", "vendor"), ("RMS_NORM", "rms_norm"), ("siluandmul", "SiluAndMul"), ("rms-norm", "rms_norm")],
)
def test_the_nearest_name_is_found_in_whatever_case_it_is_written(text: str, near: str):
    assert choices(text, ["vendor", "rms_norm", "SiluAndMul"]).endswith(f" Nearest: {near}.")


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("moe", "fused_moe"),
        ("silu", "silu_and_mul"),
        ("softmax", "topk_softmax"),
        ("rope", "mrope"),
        ("norm", None),
        ("nope", None),
        ("gating", None),
        ("x", None),
        ("", None),
    ],
)
def test_a_whole_word_is_the_name_that_alone_begins_or_ends_with_it(text: str, near: str | None):
    assert nearest(text, OPS) == near


@pytest.mark.parametrize(
    ("text", "near"),
    [("moe", "fused_moe"), ("silu", "silu_and_mul"), ("rms-norms", "rms_norm"), ("nope", ""), ("mul", "")],
)
def test_the_nearest_name_is_like_the_text_or_there_is_none(text: str, near: str):
    assert choices(text, OPS).partition(" Nearest: ")[2] == (f"{near}." if near else "")


def test_the_step_sglang_selects_no_implementation():
    token = Token("sglang")
    assert token.is_sglangs
    assert not any(token.selects(OpImpl("rms_norm", kind, kind.value, "a:b")) for kind in BackendKind)
    assert not Token("flagos").is_sglangs

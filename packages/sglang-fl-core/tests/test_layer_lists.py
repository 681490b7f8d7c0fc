"""Which layers the user leaves to SGLang."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sglang_fl.diagnostics import report
from sglang_fl.errors import SettingsError
from sglang_fl.ops import OPS
from sglang_fl.settings import Settings
from sglang_fl.sglang_adapter.layer_lists import LayerLists, layer_lists, named_ops
from sglang_fl.sglang_adapter.layers import ADAPTERS
from sglang_fl.startup import configure

Install = Callable[..., Any]


class RMSNorm:
    pass


class Qwen3RMSNorm(RMSNorm):
    pass


class SiluAndMul:
    pass


def lists(white: str = "", black: str = "") -> LayerLists:
    return LayerLists(frozenset(white.split()), frozenset(black.split()), "the list")


CASES = {
    "none": (lists(), [None, None, None]),
    "black-class": (lists(black="RMSNorm"), ["the list names RMSNorm"] * 2 + [None]),
    "black-subclass": (lists(black="Qwen3RMSNorm"), [None, "the list names Qwen3RMSNorm", None]),
    "black-op": (lists(black="rms_norm"), ["the list names rms_norm"] * 2 + [None]),
    "black-all": (
        lists(black="silu_and_mul RMSNorm"),
        ["the list names RMSNorm"] * 2 + ["the list names silu_and_mul"],
    ),
    "white-class": (lists(white="RMSNorm"), [None, None, "the list does not name it"]),
    "white-op": (lists(white="silu_and_mul"), ["the list does not name it"] * 2 + [None]),
    "white-both": (lists(white="rms_norm SiluAndMul"), [None, None, None]),
}


@pytest.mark.parametrize(("chosen", "reasons"), CASES.values(), ids=CASES)
def test_name_means_a_class_with_its_subclasses_or_an_op(chosen: LayerLists, reasons: list[str | None]):
    layers = [(RMSNorm, "rms_norm"), (Qwen3RMSNorm, "rms_norm"), (SiluAndMul, "silu_and_mul")]
    assert [chosen.why_left_out(cls, op_name) for cls, op_name in layers] == reasons


@pytest.mark.parametrize("name", ["RMSNorm", "rms_norm", "rotary_embedding"])
def test_what_is_left_to_sglang_is_no_part_of_another_op(name: str):
    chosen = lists(black=name)
    assert chosen.why_left_out(SiluAndMul, "qk_norm_rope") == f"the list names {name}"
    assert chosen.why_op_left_out("qk_norm_rope") == f"the list names {name}"
    assert lists(black="SiluAndMul").why_op_left_out("qk_norm_rope") is None


@pytest.mark.parametrize(
    ("name", "text"), [("WHITELIST", "RMSNorm"), ("BLACKLIST", "SiluAndMul,rotary_embedding")]
)
def test_op_is_left_out_with_its_last_layer_class(monkeypatch: pytest.MonkeyPatch, name: str, text: str):
    monkeypatch.setenv(f"SGLANG_FL_OOT_{name}", text)
    found = layer_lists(Settings.read())
    assert found.why_op_left_out("rms_norm") is None
    assert f"SGLANG_FL_OOT_{name}" in str(found.why_op_left_out("silu_and_mul"))


def test_every_class_and_every_op_can_be_named(monkeypatch: pytest.MonkeyPatch):
    classes = [layer_class.rpartition(":")[2].partition(".")[0] for layer_class in ADAPTERS]
    monkeypatch.setenv("SGLANG_FL_OOT_WHITELIST", ",".join(dict.fromkeys([*classes, *OPS])))
    assert layer_lists(Settings.read()).white == {*classes, *OPS}


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        (
            "SGLANG_FL_OOT_WHITELIST",
            "RMSNrom",
            r"SGLANG_FL_OOT_WHITELIST='RMSNrom': no layer class and no op is called 'RMSNrom'\. Valid: .*",
        ),
        ("SGLANG_FL_OOT_BLACKLIST", "RMSNorm,rms_nrom", r".*'rms_nrom'\. Valid: .* Nearest: rms_norm\."),
    ],
)
def test_unknown_name_is_refused_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, message: str
):
    monkeypatch.setenv(variable, text)
    with pytest.raises(SettingsError, match=f"^{message}$"):
        layer_lists(Settings.read())


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SGLANG_FL_OOT_BLACKLIST", "rms_norm"),
        ("SGLANG_FL_OOT_WHITELIST", "SiluAndMul"),
    ],
)
def test_order_for_an_op_that_is_left_out_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str
):
    monkeypatch.setenv("SGLANG_FL_PER_OP", "rms_norm=reference")
    monkeypatch.setenv(variable, text)
    expected = (
        f"^SGLANG_FL_PER_OP='rms_norm=reference' and {variable}='{text}': the one gives an order for "
        f"rms_norm, the other leaves it to SGLang"
    )
    with pytest.raises(SettingsError, match=expected):
        layer_lists(Settings.read())


def test_order_for_an_op_that_is_not_left_out_is_accepted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SGLANG_FL_PER_OP", "rms_norm=reference")
    monkeypatch.setenv("SGLANG_FL_OOT_BLACKLIST", "SiluAndMul,!rms_norm")
    assert layer_lists(Settings.read()).black == {"SiluAndMul"}


def named(monkeypatch: pytest.MonkeyPatch, **variables: str) -> dict[str, str]:
    for name, text in variables.items():
        monkeypatch.setenv(f"SGLANG_FL_{name}", text)
    return named_ops(Settings.read())


def test_an_order_and_a_whitelist_name_ops_and_a_blacklist_does_not(monkeypatch: pytest.MonkeyPatch):
    assert named(monkeypatch, OOT_BLACKLIST="RMSNorm", PER_OP="mrope=reference;relu2=reference") == {
        "mrope": "SGLANG_FL_PER_OP",
        "relu2": "SGLANG_FL_PER_OP",
    }


def test_an_order_that_begins_with_sglang_names_nothing(monkeypatch: pytest.MonkeyPatch):
    orders = "mrope=sglang;relu2=sglang|reference;silu_and_mul=reference|sglang"
    assert named(monkeypatch, PREFER="sglang", PER_OP=orders) == {"silu_and_mul": "SGLANG_FL_PER_OP"}
    listed = named(monkeypatch, OOT_WHITELIST="relu2,rms_norm", PER_OP="relu2=sglang")
    assert listed == {"rms_norm": "SGLANG_FL_OOT_WHITELIST"}


def test_a_layer_class_names_each_op_that_it_may_compute(monkeypatch: pytest.MonkeyPatch):
    assert named(monkeypatch, OOT_WHITELIST="TopK,rms_norm", PER_OP="rms_norm=reference") == {
        "topk_softmax": "SGLANG_FL_OOT_WHITELIST",
        "topk_sigmoid": "SGLANG_FL_OOT_WHITELIST",
        "rms_norm": "SGLANG_FL_PER_OP",
    }


def test_what_a_file_names_is_called_by_its_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    file = tmp_path / "fl.yaml"
    file.write_text("op_backends:\n  relu2: reference\n")
    (title,) = named(monkeypatch, CONFIG=str(file)).values()
    assert title == f"SGLANG_FL_CONFIG={str(file)!r}: op_backends"


def test_preferring_a_kind_and_a_vendors_defaults_name_nothing(
    monkeypatch: pytest.MonkeyPatch, install_vendor: Install
):
    assert named(monkeypatch, PREFER="vendor") == {}
    install_vendor("toy", defaults={"per_op": "relu2=reference", "oot_whitelist": "ReLU2"})
    settings = configure().settings
    assert settings.per_op
    assert named_ops(settings) == {}


#: List, what it names, an op, whether a layer class of the op is ours.
COVERED = [
    ("BLACKLIST", "RotaryEmbedding", "rotary_embedding", False),
    ("BLACKLIST", "RotaryEmbedding", "mrope", False),
    ("BLACKLIST", "DeepseekScalingRotaryEmbedding", "rotary_embedding", True),
    ("BLACKLIST", "MRotaryEmbedding", "rotary_embedding", True),
    ("BLACKLIST", "RMSNorm", "rms_norm", True),  # RMSNormWithoutScale and Gemma4RMSNorm do not derive from it
    ("WHITELIST", "RotaryEmbedding", "mrope", True),
    ("WHITELIST", "MRotaryEmbedding", "rotary_embedding", False),
    ("WHITELIST", "Glm4vRMSNorm", "rms_norm", True),
]


@pytest.mark.parametrize(("which", "name", "op_name", "is_ours"), COVERED)
def test_a_class_stands_for_its_subclasses_wherever_a_list_is_asked(
    monkeypatch: pytest.MonkeyPatch, which: str, name: str, op_name: str, is_ours: bool
):
    monkeypatch.setenv(f"SGLANG_FL_OOT_{which}", name)
    settings = Settings.read()
    assert (layer_lists(settings).why_op_left_out(op_name) is None) is is_ours
    assert (op_name in named_ops(settings)) is (is_ours and which == "WHITELIST")
    row = next(row for row in report.ops() if row["op"] == op_name)
    assert (row["runs"] != "sglang") is is_ours
    assert (report.why(op_name)["layer_2"] == "on") is is_ours
    configure.cache_clear()
    monkeypatch.setenv("SGLANG_FL_PER_OP", f"{op_name}=reference")
    if is_ours:
        assert layer_lists(Settings.read())
    else:
        with pytest.raises(SettingsError, match=f"an order for {op_name}, the other leaves it to SGLang"):
            layer_lists(Settings.read())

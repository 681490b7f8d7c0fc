"""Settings copied from another plugin of FlagOS are answered with our names."""

from collections.abc import Callable

import pytest

from sglang_fl.errors import SettingsError, choices
from sglang_fl.foreign_names import NAMES, VARIABLES
from sglang_fl.ops import OPS
from sglang_fl.registry import Registry
from sglang_fl.settings import Settings, unknown_variables
from sglang_fl.settings.sources import variable
from sglang_fl.startup import configure
from sglang_fl.vendor import BackendKind

OURS = {*map(variable, Settings.model_fields)}
LAYER_3 = "it has no effect: layer 3 (communication) is not in this version."


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("SGLANGFL_PREFER", "it has no effect here, where it is called SGLANG_FL_PREFER."),
        ("sglang_fl_prefer", "it has no effect here, where it is called SGLANG_FL_PREFER."),
        ("Sglang_FL_Prefer", "it has no effect here, where it is called SGLANG_FL_PREFER."),
        ("SGLANG_FLAGOS_PREFER", "it has no effect here, where it is called SGLANG_FL_PREFER."),
        ("SGLANG_FLAGOS_WHITELIST", "it has no effect here, where it is called SGLANG_FL_FLAGOS_WHITELIST."),
        ("SGLANG_FL_WHITELIST", "it has no effect here, where it is called SGLANG_FL_OOT_WHITELIST."),
        ("VLLM_FL_PER_OP", "it has no effect here, where it is called SGLANG_FL_PER_OP."),
        ("USE_FLAGGEM", "it has no effect here, where it is called USE_FLAGGEMS."),
        ("use_flaggems", "it has no effect here, where it is called USE_FLAGGEMS."),
        ("SGLANGFL_PREFR", "there is no such variable. Nearest: SGLANG_FL_PREFER."),
        ("SGLANG_FLPREFER", "there is no such variable. Nearest: SGLANG_FL_PREFER."),
        ("SGLANG_FL_PERFER", "there is no such variable. Nearest: SGLANG_FL_PREFER."),
        ("FLAGCX_PATH", LAYER_3),
        ("SGLANG_FL_DISAGG_FLAGCX", LAYER_3),
    ],
)
def test_a_foreign_variable_is_told_with_ours(monkeypatch: pytest.MonkeyPatch, name: str, answer: str):
    monkeypatch.setenv(name, "1")
    assert unknown_variables() == [f"{name}: {answer}"]


@pytest.mark.parametrize(
    "name", ["SGLANG_FLASHINFER_WORKSPACE_SIZE", "VLLM_FLASH_ATTN_VERSION", "FLAGS", "SGLANG_FL"]
)
def test_variables_of_others_are_nobodys_business(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, "1")
    assert unknown_variables() == []


def test_each_answer_is_a_name_that_we_have():
    assert set(VARIABLES.values()) <= OURS
    valid = {*OPS, *(kind.value for kind in BackendKind), "nvidia", "ascend", "mlu"}
    assert {name for ours in NAMES.values() for name in ours} <= valid
    assert NAMES.keys().isdisjoint(valid)


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        (
            "SGLANG_FL_PLATFORM",
            "cuda",
            r"'cuda' is called nvidia here\. Install its package \(sglang-fl-nvidia\)",
        ),
        ("SGLANG_FL_PLATFORM", "cambricon", r"called mlu here\. Install its package \(sglang-fl-mlu\)"),
        ("SGLANG_FL_DENY_VENDORS", "cuda", r"no vendor 'cuda' is installed\. .* It is called nvidia here\."),
        ("SGLANG_FL_PLATFORM", "kunlunxin", r"Install its package, or unset the variable\."),
        ("SGLANG_FL_PER_OP", "mrotary_embedding=flagos", r"'mrotary_embedding' is called mrope here\."),
        ("SGLANG_FL_PER_OP", "topk=reference", r"'topk' is called topk_softmax or topk_sigmoid here\."),
        ("SGLANG_FL_PER_OP", "rms_norm=torch", r"'torch' is called reference here\."),
        ("SGLANG_FL_VERIFY", "topk", r"'topk' is called topk_softmax or topk_sigmoid here\."),
        ("SGLANG_FL_PREFER", "flaggems", r"'flaggems' is called flagos here\."),
        ("SGLANG_FL_OOT_BLACKLIST", "!mrotary_embedding", r"'mrotary_embedding' is called mrope here\."),
    ],
)
def test_a_foreign_name_is_refused_with_ours(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, answer: str
):
    monkeypatch.setenv(name, text)
    with pytest.raises(SettingsError, match=answer):
        configure()


def test_a_foreign_vendor_is_told_with_ours_where_that_is_installed(
    install_vendor: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    install_vendor("nvidia", probe="return 'no device'")
    monkeypatch.setenv("SGLANG_FL_DENY_VENDORS", "cuda")
    with pytest.raises(
        SettingsError, match=r"no vendor 'cuda' is installed\. .*'cuda' is called nvidia here\."
    ):
        configure()


def test_commands_answer_a_foreign_op_too():
    with pytest.raises(SettingsError, match=r"'topk' is called topk_softmax or topk_sigmoid here\."):
        Registry.op("topk")
    assert choices("cuda", ["a", "b"]) == "Valid: a, b."

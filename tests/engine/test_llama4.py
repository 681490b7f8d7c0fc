"""Llama 4 on platforms of ours: what its module is told about rotated queries and keys."""

import contextlib
import importlib
import sys

import pytest
from packaging.version import Version
from sglang.srt import platforms
from sglang.srt.platforms.interface import SRTPlatform
from sglang.srt.plugins.hook_registry import HookRegistry

from sglang_fl.errors import SettingsError
from sglang_fl.sglang_adapter import llama4
from sglang_fl.sglang_adapter.methods import TARGET
from sglang_fl.sglang_adapter.releases import CHUNKS
from tests.engine.release import RELEASE, present

MODULE = "sglang.srt.models.llama4"


@present(RELEASE in CHUNKS, "name for it that we know")
def test_it_takes_what_a_rotation_returns(monkeypatch):
    module = importlib.import_module(MODULE)
    monkeypatch.setattr(module, "_is_npu", False)
    llama4.take_what_is_returned()
    assert module._is_npu is True
    monkeypatch.delattr(module, "_is_npu")
    with pytest.raises(SettingsError, match="has no _is_npu: this SGLang is none that we know"):
        llama4.take_what_is_returned()


def test_no_module_is_loaded_for_it(monkeypatch):
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    llama4.take_what_is_returned()
    assert MODULE not in sys.modules


@pytest.mark.parametrize(
    ("version", "is_ours", "hooks"),
    [("0.5.23", True, 1), ("0.5.22", True, 0), ("0.5.23", False, 0)],
)
def test_sglangs_own_platforms_and_earlier_releases_are_left_alone(monkeypatch, version, is_ours, hooks):
    placed: list[str] = []
    monkeypatch.setattr(HookRegistry, "register", lambda target, *hook: placed.append(target))
    if not is_ours:
        monkeypatch.setattr(platforms, "current_platform", SRTPlatform())
    llama4.install(Version(version), guard=contextlib.nullcontext)
    assert placed == [TARGET] * hooks

"""What is refused or warned of once a model is loaded; ``tests/releases`` takes the shortcuts themselves."""

import logging
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.plugins.hook_registry import HookRegistry

from sglang_fl.dispatch_log import DispatchLog
from sglang_fl.errors import SettingsError
from sglang_fl.sglang_adapter import loaded, seams
from sglang_fl.sglang_adapter.loaded import LoadedModels
from sglang_fl.sglang_adapter.shortcuts import SHORTCUTS

PER_OP = "SGLANG_FL_PER_OP"


def models(*named: str, version: Version | None = None) -> LoadedModels:
    HookRegistry.reset()
    release = version or seams.installed_version()
    return LoadedModels(dict.fromkeys(named, PER_OP), DispatchLog(None), release)


def of_class(owner: str) -> torch.nn.Module:
    """Return a model that holds a layer of an SGLang class of that name."""
    module, _, name = owner.partition(":")
    layer = type(name, (torch.nn.Module,), {"__module__": module})()
    return torch.nn.Sequential(layer)


def test_a_model_that_calls_a_method_of_a_named_op_is_refused_with_the_reason():
    with pytest.raises(
        SettingsError, match=f"{PER_OP} names rms_norm, but Olmo2Attention of SGLang"
    ) as error:
        models("rms_norm").settle(of_class("sglang.srt.models.olmo2:Olmo2Attention"))
    assert "calls q_norm and k_norm by forward_native" in str(error.value)
    assert "Leave rms_norm out." in str(error.value)


def test_it_is_not_refused_where_another_op_is_named_or_the_release_has_no_such_call():
    models("silu_and_mul").settle(of_class("sglang.srt.models.olmo2:Olmo2Attention"))
    models("topk_softmax", version=Version("0.5.19")).settle(
        of_class("sglang.srt.models.xllm:XllmSparseMoeBlock")
    )


def test_a_named_op_whose_layer_is_pinned_is_warned_of_once(caplog):
    loaded._warn_once.cache_clear()
    pinned = [RMSNorm(8, force_native=True) for _ in range(2)]
    with caplog.at_level(logging.WARNING, "sglang_fl"):
        models("rms_norm").settle(torch.nn.ModuleList([*pinned, SiluAndMul()]))
    assert caplog.messages == [
        f"{PER_OP} names rms_norm, but SGLang has pinned RMSNorm layers to forward_native"
    ]


def test_what_is_turned_off_is_said_in_one_line(caplog):
    with caplog.at_level(logging.INFO, "sglang_fl"):
        several = models("rms_norm", "silu_and_mul")
        several.settle(torch.nn.ModuleList([SiluAndMul()]))
        several.settle(torch.nn.ModuleList([SiluAndMul()]))
    (line,) = (message for message in caplog.messages if "never run" in message)
    assert line.startswith(f"{PER_OP}: SGLang's ")
    for name in ("fused_qk_norm", "dual_gemm", "fused_allreduce_norm"):
        assert name in line


def test_a_switch_that_sglang_did_not_hook_is_refused(monkeypatch):
    monkeypatch.setattr(HookRegistry, "apply_hooks", lambda: None)
    (shortcut,) = (known for known in SHORTCUTS if known.name == "fused_allreduce_norm")
    __import__("sglang.srt.layers.layer_boundary.residual.add_norm")
    with pytest.raises(SettingsError, match=f"{PER_OP} needs SGLang's .* to be hooked, and it was not"):
        models(*shortcut.ops).settle(torch.nn.ModuleList([SiluAndMul()]))


def test_nothing_is_imported_to_hook_it(tmp_path: Path):
    target = "sglang.srt.models.no_such_model.Attention.forward"
    assert loaded._current(target) is None
    assert loaded._current("sglang.srt.layers.activation.SiluAndMul.forward_native") is not None
    assert loaded._current("sglang.srt.layers.activation.NoSuchLayer.forward") is None

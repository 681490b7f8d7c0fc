"""What is refused or warned of once a model is loaded; ``tests/releases`` takes the shortcuts themselves."""

import importlib
import inspect
import logging
import sys
from importlib import util
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.plugins.hook_registry import HookRegistry

from sglang_fl.errors import SettingsError
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.sglang_adapter import loaded_models, seams, shortcut_hooks
from sglang_fl.sglang_adapter.kernel_faults import why_wrong
from sglang_fl.sglang_adapter.loaded_models import LoadedModels
from sglang_fl.sglang_adapter.shortcuts import SHORTCUTS, Shortcut
from tests.engine.release import RELEASE, can_force_native, present

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


@can_force_native
def test_a_named_op_whose_layer_is_pinned_is_warned_of_once(caplog):
    loaded_models._warn_once.cache_clear()
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
    newer = [s.name for s in SHORTCUTS if s.name == "dual_gemm" and RELEASE in s.releases]
    for name in ("fused_qk_norm", "fused_allreduce_norm", *newer):
        assert name in line


@present(util.find_spec("sglang.srt.layers.layer_boundary") is not None, "module layer_boundary")
def test_a_switch_that_sglang_did_not_hook_is_refused(monkeypatch):
    monkeypatch.setattr(HookRegistry, "apply_hooks", lambda: None)
    (shortcut,) = (known for known in SHORTCUTS if known.name == "fused_allreduce_norm")
    __import__("sglang.srt.layers.layer_boundary.residual.add_norm")
    with pytest.raises(SettingsError, match=f"{PER_OP} needs SGLang's .* to be hooked, and it was not"):
        models(*shortcut.ops).settle(torch.nn.ModuleList([SiluAndMul()]))


def test_nothing_is_imported_to_hook_it(tmp_path: Path):
    target = "sglang.srt.models.no_such_model.Attention.forward"
    assert shortcut_hooks._current(target) is None
    assert shortcut_hooks._current("sglang.srt.layers.activation.SiluAndMul.forward_native") is not None
    assert shortcut_hooks._current("sglang.srt.layers.activation.NoSuchLayer.forward") is None


@pytest.fixture
def imported_later(monkeypatch) -> str:
    """A module of a model that nobody has imported yet, and that a test may import."""
    name = "sglang.srt.models.qwen3_moe"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(importlib.import_module("sglang.srt.models"), "qwen3_moe", None, raising=False)
    return name


def depth(function: object) -> int:
    """Return how many wrappers stand around a function."""
    return 1 + depth(function.__wrapped__) if hasattr(function, "__wrapped__") else 0


def bare(cls: type[torch.nn.Module]) -> torch.nn.Module:
    """Return a layer of this class without anything in it."""
    layer = cls.__new__(cls)
    torch.nn.Module.__init__(layer)
    return layer


@pytest.mark.parametrize("named", [(), ("rms_norm",)], ids=["watched", "turned off"])
def test_what_a_later_model_brings_is_hooked_and_nothing_twice(named, imported_later: str):
    utils = importlib.import_module("sglang.srt.models.utils")
    several = models(*named)
    before = depth(utils.apply_qk_norm)
    several.settle(torch.nn.Sequential(SiluAndMul()))
    attention = importlib.import_module(imported_later).Qwen3MoeAttention
    assert depth(attention.apply_qk_norm_rope) == 0
    for _ in range(2):  # the draft model, and one more
        several.settle(torch.nn.Sequential(bare(attention)))
        assert depth(attention.apply_qk_norm_rope) == 1
        assert depth(utils.apply_qk_norm) == before + 1


def test_a_layer_class_that_no_model_has_is_not_hooked_and_its_subclass_is(imported_later: str):
    attention = importlib.import_module(imported_later).Qwen3MoeAttention
    several = models()
    several.settle(torch.nn.Sequential(SiluAndMul()))
    assert depth(attention.apply_qk_norm_rope) == 0
    several.settle(torch.nn.Sequential(bare(type("Attention", (attention,), {}))))
    assert depth(attention.apply_qk_norm_rope) == 1


def test_a_switch_in_a_module_of_a_later_model_is_refused_where_sglang_does_not_hook_it(
    imported_later: str, monkeypatch
):
    several = models("rotary_embedding")
    several.settle(torch.nn.Sequential(SiluAndMul()))
    attention = importlib.import_module(imported_later).Qwen3MoeAttention
    monkeypatch.setattr(HookRegistry, "apply_hooks", lambda: None)
    with pytest.raises(SettingsError, match=r"needs SGLang's .*apply_qk_norm_rope to be hooked"):
        several.settle(torch.nn.Sequential(bare(attention)))


GATED = next(shortcut for shortcut in SHORTCUTS if shortcut.name == "fused_qk_norm_rope_gate")


@pytest.mark.parametrize(("version", "is_off"), [("0.5.15", True), ("0.5.18.post1", True), ("0.5.19", False)])
def test_a_kernel_that_is_wrong_in_a_release_is_off_there_and_its_layers_run(
    version: str, is_off: bool, monkeypatch, caplog
):
    layer, method, arguments = attention(GATED)
    monkeypatch.setattr(type(layer), method, lambda *given: "fused")
    with caplog.at_level(logging.INFO, "sglang_fl"):
        several = models(version=Version(version))
        several.settle(torch.nn.Sequential(SiluAndMul()))
        assert "fused_qk_norm_rope_gate" not in caplog.text
        several.settle(torch.nn.Sequential(layer))
        several.settle(torch.nn.Sequential(layer))
    layer.forward_prepare_native = lambda *given: "layers"
    assert getattr(layer, method)(*arguments) == ("layers" if is_off else "fused")
    told = [message for message in caplog.messages if "fused_qk_norm_rope_gate" in message]
    assert [message.startswith(f"SGLang {version}: ") for message in told] == [True] * is_off


def test_a_wrong_kernel_that_cannot_be_turned_off_is_warned_of(monkeypatch, caplog):
    layer, _, _ = attention(GATED)
    monkeypatch.setattr(HookRegistry, "apply_hooks", lambda: None)
    with caplog.at_level(logging.WARNING, "sglang_fl"):
        models(version=Version("0.5.18")).settle(torch.nn.Sequential(layer))
    assert f"SGLang's {GATED.target} was not hooked: a kernel that is known to be wrong" in caplog.text


PROLOGUES = [
    shortcut
    for shortcut in SHORTCUTS
    if ".forward_prepare_" in shortcut.target and RELEASE in shortcut.releases
]


def attention(shortcut: Shortcut) -> tuple[torch.nn.Module, str, list[object]]:
    """Return a bare layer of the class that takes a shortcut, the method, and arguments for it."""
    path, _, method = shortcut.target.rpartition(".")
    module, _, name = path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    layer = bare(cls)
    layer.attn_output_gate = True
    layer.rotary_emb = torch.nn.Module()
    layer.rotary_emb.mrope_section = [1]
    if "rotary_embedding" not in shortcut.ops or len(shortcut.ops) > 1:
        layer.q_norm = RMSNorm(8)
    return layer, method, list(inspect.signature(getattr(cls, method)).parameters)[1:]


@pytest.mark.parametrize("shortcut", PROLOGUES, ids=lambda shortcut: shortcut.target)
def test_a_named_op_is_computed_by_the_native_prologue(shortcut: Shortcut, monkeypatch):
    layer, method, arguments = attention(shortcut)
    native = list(inspect.signature(layer.forward_prepare_native).parameters)
    monkeypatch.setattr(type(layer), method, getattr(type(layer), method))  # put back afterwards
    models(shortcut.ops[0]).settle(torch.nn.Sequential(layer))
    layer.forward_prepare_native = lambda *given: given
    assert list(getattr(layer, method)(*arguments)) == native
    assert list(getattr(layer, method)(**dict(zip(arguments, arguments, strict=True)))) == native


@pytest.mark.parametrize(
    "shortcut", [s for s in PROLOGUES if why_wrong(s.target, RELEASE) is None], ids=lambda s: s.target
)
def test_a_fused_prologue_that_ran_is_told_of(shortcut: Shortcut, monkeypatch, tmp_path: Path):
    layer, method, arguments = attention(shortcut)

    def fused(self: object, *given: object) -> str:
        return "fused"

    monkeypatch.setattr(type(layer), method, fused)
    HookRegistry.reset()
    log = tmp_path / "dispatch.log"
    LoadedModels({}, DispatchLog(log), seams.installed_version()).settle(torch.nn.Sequential(layer))
    assert log.read_text() == ""
    assert getattr(type(layer), method) is not fused
    assert getattr(layer, method)(*arguments) == "fused"
    assert getattr(type(layer), method) is fused  # from now on it costs nothing
    skipped = {line.partition(" → ")[0] for line in log.read_text().splitlines()}
    assert {line.partition(" → ")[2] for line in log.read_text().splitlines()} == {f"sglang({shortcut.name})"}
    assert ("[OOT-DISPATCH] RMSNorm" in skipped) == hasattr(layer, "q_norm")
    assert ("[OOT-DISPATCH] Module" in skipped) == ("rotary_embedding" in shortcut.ops)


def test_a_function_that_was_watched_is_put_back_wherever_it_was_imported(monkeypatch, tmp_path: Path):
    qwen3, utils = (importlib.import_module(f"sglang.srt.models.{name}") for name in ("qwen3", "utils"))

    def fused(q, k, q_norm, k_norm, head_dim):
        return q, k

    for module in (qwen3, utils):
        monkeypatch.setattr(module, "apply_qk_norm", fused)
    HookRegistry.reset()
    log = tmp_path / "dispatch.log"
    LoadedModels({}, DispatchLog(log), seams.installed_version()).settle(torch.nn.Sequential(SiluAndMul()))
    assert qwen3.apply_qk_norm is utils.apply_qk_norm is not fused
    qwen3.apply_qk_norm("q", "k", q_norm=RMSNorm(8), k_norm=None, head_dim=8)
    assert qwen3.apply_qk_norm is utils.apply_qk_norm is fused
    assert log.read_text() == "[OOT-DISPATCH] RMSNorm → sglang(fused_qk_norm)\n"


def test_qwen3_5_norms_query_and_key_by_its_layers_where_they_are_named(monkeypatch):
    qwen3_5 = importlib.import_module("sglang.srt.models.qwen3_5")
    cls = qwen3_5.Qwen3_5AttentionDecoderLayer
    monkeypatch.setattr(cls, "_apply_qk_norm", cls._apply_qk_norm)
    models("gemma_rms_norm").settle(torch.nn.Sequential(SiluAndMul()))
    layer = bare(cls)
    layer.head_dim, layer.q_norm, layer.k_norm = 8, RMSNorm(8), RMSNorm(8)
    q, k = torch.randn(3, 16), torch.randn(3, 8)
    with torch.no_grad():
        normed = layer._apply_qk_norm(q, k)
        expected = [layer.q_norm.forward_native(q.view(-1, 8)).view(3, 16), layer.k_norm.forward_native(k)]
    assert all(map(torch.equal, normed, expected))


def of_convolution(name: str) -> Shortcut:
    (shortcut,) = (known for known in SHORTCUTS if known.name == name)
    return shortcut


#: Past the convolution of linear attention: the backend's module that holds the function under its name.
CONVOLUTIONS = {
    "fused_proj_conv": "gdn_backend",
    "kda_fused_decode": None,
    "kda_prefill_graph": "kda_backend",
}


@pytest.mark.parametrize(
    "name", [name for name in CONVOLUTIONS if RELEASE in of_convolution(name).releases], ids=str
)
@pytest.mark.parametrize("is_named", [False, True])
def test_kernels_past_the_convolution_are_told_of_or_turned_off(
    name: str, is_named: bool, monkeypatch, tmp_path: Path
):
    shortcut = of_convolution(name)
    path, _, function = shortcut.target.rpartition(".")
    module = importlib.import_module(path)
    fused = lambda *given: "fused"  # noqa: E731 - as in SGLang's modules, a function without a class
    switches = [switch.target.rpartition(".")[2] for switch in shortcut.switches]
    fakes = {function: fused} | {switch: lambda *given: ("SGLang says", "yes") for switch in switches}
    holders = [module]
    if CONVOLUTIONS[name]:  # on CUDA it has imported the names
        holders.append(importlib.import_module(f"sglang.srt.layers.attention.linear.{CONVOLUTIONS[name]}"))
    for holder in holders:
        for key, fake in fakes.items():
            monkeypatch.setattr(holder, key, fake, raising=False)
    HookRegistry.reset()
    log = tmp_path / "dispatch.log"
    named = dict.fromkeys(shortcut.ops if is_named else (), PER_OP)
    LoadedModels(named, DispatchLog(log), RELEASE).settle(torch.nn.Sequential(SiluAndMul()))
    for switch in switches if is_named else ():
        answers = [getattr(holder, switch)("projection") for holder in holders]
        assert all(answer is False or answer[0] is False for answer in answers)
    assert getattr(holders[-1], function)("projection") == "fused"
    told = log.read_text().splitlines() if log.exists() else []
    assert len(told) == (not is_named or not switches)
    assert all(line.endswith(f".{shortcut.ops[0]} → sglang({name})") for line in told)

"""Layers and steps that SGLang hands to a kernel plugin are left to it, and the dispatch log names it."""

import copy
import importlib
import pickle
import types
from pathlib import Path

import pytest
import torch
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.platforms import current_platform
from sglang.srt.plugins.hook_registry import HookRegistry

from sglang_fl.errors import SettingsError
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.sglang_adapter.kernel_plugins import kernel_plugin_of, whole_step_kernels
from sglang_fl.sglang_adapter.loaded_models import LoadedModels
from tests.engine.dispatch_lines import told
from tests.engine.release import RELEASE, SEAM, hook_with, present, resolves_in_the_first_call

PACKAGE = "acme_kernels"
Base = getattr(importlib.import_module(SEAM.owner.rpartition(".")[0]), SEAM.owner.rpartition(".")[2])
spec = importlib.import_module("sglang.kernels.spec") if hasattr(Base, "_resolve_forward_method") else None
has_plugin_backend = present(hasattr(getattr(spec, "KernelBackend", None), "PLUGIN"), "KernelBackend.PLUGIN")


def from_plugin(function: object) -> object:
    """Let a function be one of a plugin's package."""
    function.__module__ = f"{PACKAGE}.kernels"
    return function


@from_plugin
def silu_of_plugin(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.full_like(x, 7.0)


class Newcomer(Base):
    """A fused layer that we have no adapter for."""

    def forward_native(self, x: torch.Tensor) -> torch.Tensor:
        return x


class WithBackend(Newcomer):
    """One for which SGLang's own source has a plugin's kernel."""

    capabilities = (
        {spec.KernelBackend.PLUGIN: frozenset()}
        if hasattr(spec, "KernelBackend") and hasattr(spec.KernelBackend, "PLUGIN")
        else {}
    )

    def forward_plugin(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, 9.0)


class PicksPerCall(WithBackend):
    """One whose plugin takes calls of three rows alone."""

    def backend_eligible(self, backend: object, x: torch.Tensor) -> bool:
        return x.shape[0] == 3


@pytest.fixture
def log(tmp_path: Path, monkeypatch) -> Path:
    """The dispatch log of this test alone, also of the hook."""
    path = tmp_path / "dispatch.log"
    path.touch()
    HookRegistry.reset()
    hook_with(DispatchLog(path), monkeypatch)
    return path


@pytest.fixture
def registered(monkeypatch):
    """Return a function that registers a plugin's forward for a class on this platform."""
    monkeypatch.setattr(Base, "_oot_forward_registry", {})

    def register(cls: type, function: object = silu_of_plugin) -> None:
        Base.register_oot_forward(cls, function, current_platform.get_dispatch_key_name())

    return register


@pytest.fixture
def in_tree(monkeypatch):
    """SGLang's own platform, on which it looks at backends."""
    fused_op = importlib.import_module(SEAM.owner.rpartition(".")[0])
    monkeypatch.setattr(fused_op, "_oot_dispatch_key", lambda: None)


def settle(log: Path, model: torch.nn.Module, named: dict[str, str] | None = None) -> torch.nn.Module:
    LoadedModels(named or {}, DispatchLog(log), RELEASE).settle(model)
    return model


@pytest.mark.parametrize("cls", [SiluAndMul, Newcomer], ids=lambda cls: cls.__name__)
def test_a_layer_with_a_registered_forward_is_the_plugins_and_told_once_it_ran(cls, log, registered):
    registered(cls)
    (layer,) = settle(log, torch.nn.Sequential(cls()))
    assert told(log) == []
    for _ in range(2):
        assert layer(torch.randn(3, 8)).unique().tolist() == [7.0]
    assert told(log) == [f"{cls.__name__} → sglang(plugin:{PACKAGE})"]
    assert layer._forward_method.__func__ is silu_of_plugin  # from now on it costs nothing


def test_a_layer_whose_op_is_named_is_not_left_to_the_plugin(log, registered):
    registered(SiluAndMul)
    (layer,) = settle(log, torch.nn.Sequential(SiluAndMul()), {"silu_and_mul": "SGLANG_FL_PER_OP"})
    layer(torch.randn(3, 8))
    assert told(log) == ["SiluAndMul → reference(reference)"]


def test_a_class_below_or_beside_the_registered_one_is_not_the_plugins(log, registered):
    class Below(Newcomer):
        pass

    registered(Newcomer)
    layers = settle(log, torch.nn.Sequential(Below(), SiluAndMul()))
    layers(torch.randn(3, 8))
    assert told(log) == ["SiluAndMul → reference(reference)"]


def test_a_layer_that_sglang_pinned_stays_pinned(log, registered):
    registered(SiluAndMul)
    layer = SiluAndMul()
    layer._forward_method = layer.forward_native
    settle(log, torch.nn.Sequential(layer))
    layer(torch.randn(3, 8))
    assert told(log) == ["SiluAndMul → sglang(pinned)"]


@has_plugin_backend
@pytest.mark.usefixtures("in_tree")
def test_a_class_with_a_plugin_backend_is_told_without_a_name(log):
    (layer,) = settle(log, torch.nn.Sequential(from_sglang(WithBackend)()))
    assert layer(torch.randn(3, 8)).unique().tolist() == [9.0]
    assert told(log) == ["WithBackend → sglang(plugin)"]


def from_sglang(cls: type) -> type:
    cls.forward_plugin.__module__ = "sglang.srt.layers.activation"
    return cls


@has_plugin_backend
@pytest.mark.usefixtures("in_tree")
def test_a_plugin_that_sglang_asks_in_each_call_is_told_once_it_took_one(log):
    from_sglang(WithBackend)
    (layer,) = settle(log, torch.nn.Sequential(PicksPerCall()))
    assert torch.equal(layer(x := torch.randn(2, 8)), x)
    assert told(log) == []
    assert layer(torch.randn(3, 8)).unique().tolist() == [9.0]
    assert told(log) == ["PicksPerCall → sglang(plugin)"]


def test_a_plugin_is_recognised_through_wrappers_and_partials(registered):
    registered(SiluAndMul)
    layer = SiluAndMul()
    own = silu_of_plugin.__get__(layer)
    wrapped = types.SimpleNamespace(__wrapped__=own)
    for forward in (own, wrapped, importlib.import_module("functools").partial(own)):
        assert kernel_plugin_of(layer, forward) == f"plugin:{PACKAGE}"
    assert kernel_plugin_of(layer, layer.forward_native) is None
    assert kernel_plugin_of(layer, None) is None


def test_a_copy_before_the_first_call_is_the_plugins_too_and_holds_itself(log, registered):
    registered(SiluAndMul)
    (twin,) = copy.deepcopy(settle(log, torch.nn.Sequential(SiluAndMul())))
    assert twin._forward_method.__self__ is twin
    assert twin._forward_method.__func__ is silu_of_plugin


@resolves_in_the_first_call
def test_a_layer_is_pickled_before_its_first_call_as_without_us(log, registered):
    registered(SiluAndMul)
    layers = settle(log, torch.nn.Sequential(SiluAndMul()))
    (twin,) = pickle.loads(pickle.dumps(layers))
    assert twin._forward_method is None


class WholeStep(torch.nn.Module):
    """A model as SGLang leaves it with a kernel plugin for whole steps: it asks ``forward`` of an object."""

    def __init__(self) -> None:
        super().__init__()
        self.act = SiluAndMul()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x)


class Kernels:
    """What a plugin has built for a model."""

    __module__ = f"{PACKAGE}.steps"

    def forward(self, *given: object) -> str:
        return "a whole step"


def with_megakernel(model: torch.nn.Module) -> Kernels:
    model.__dict__["_megakernel"] = built = Kernels()
    return built


def with_monokernel(model: torch.nn.Module) -> Kernels:
    built, original = Kernels(), model.forward

    def forward(*args: object, **kwargs: object) -> object:
        return built.forward(*args, **kwargs) if args else original(*args, **kwargs)

    model.forward = forward
    model._monokernel_unread_metadata = ((), ())
    return built


@pytest.mark.parametrize("install", [with_megakernel, with_monokernel])
def test_whole_steps_of_a_plugin_are_told_once_one_ran(install, log, caplog):
    model = WholeStep()
    built = install(model)
    assert whole_step_kernels(model) is built
    settle(log, model)
    assert told(log) == []
    assert [built.forward(1), built.forward(1)] == ["a whole step"] * 2
    assert told(log) == [f"WholeStep → sglang(plugin:{PACKAGE})"]


@pytest.mark.parametrize("install", [with_megakernel, with_monokernel])
def test_whole_steps_of_a_plugin_are_refused_where_an_op_is_named(install, log):
    model = WholeStep()
    install(model)
    with pytest.raises(SettingsError, match=f"names silu_and_mul, but .*plugin:{PACKAGE}.* whole steps"):
        settle(log, model, {"silu_and_mul": "SGLANG_FL_PER_OP"})


def test_a_model_without_a_plugin_has_no_whole_steps():
    assert whole_step_kernels(WholeStep()) is None

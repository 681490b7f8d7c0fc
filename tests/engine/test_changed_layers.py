"""Layers whose attributes change after their first call: they are read in each, as SGLang reads them."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sglang.srt.layers.layernorm import RMSNorm, RMSNormWithoutScale
from torch import Tensor

from sglang_fl.dispatch.life import is_ours
from tests.engine.every_layer import LAYERS, experts, new_layer, put, references, told
from tests.engine.test_layers import clones


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def changes() -> list[Any]:
    """Return each attribute of each layer that is a number, a switch or a word, with another value of it.

    The experts have a test of their own.
    """
    others = {"tanh": "none", "none": "tanh"}
    found = []
    for name, (layer, *_) in LAYERS.items():
        for attribute, value in vars(layer).items():
            if attribute.startswith("_") or attribute == "training" or name.startswith("Unquantized"):
                continue
            if isinstance(value, bool):
                other: Any = not value
            elif isinstance(value, int | float):
                other = type(value)(2 * value) or 1
            elif isinstance(value, str):
                other = others.get(value)
            elif isinstance(value, list) and len(value) == 3:
                other = [value[2], *value[:2]]
            else:
                continue
            found.append(pytest.param(name, attribute, other, id=f"{name}-{attribute}"))
    return found


def outcome(layer: Any, given: Any, more: Any) -> list[Tensor] | type[Exception]:
    """Return what a call gives: its results, or the class of what it raises."""
    try:
        result = layer._forward_method(*clones(given), **more)
    except Exception as error:  # noqa: BLE001 - whatever SGLang has to say of such a layer
        return type(error)
    return [result] if isinstance(result, Tensor) else [part for part in result if part is not None]


@pytest.mark.parametrize(("name", "attribute", "value"), changes())
def test_a_layer_that_was_changed_is_as_one_that_always_was_so(name: str, attribute: str, value: Any):
    layer, given, more = new_layer(name)
    always = copy.deepcopy(layer)
    setattr(always, attribute, value)
    put(references(), always)
    put(references(), layer)
    for _ in range(2):
        layer._forward_method(*clones(given), **more)
    setattr(layer, attribute, value)
    for _ in range(2):
        mine, theirs = (outcome(each, given, more) for each in (layer, always))
        if isinstance(theirs, type):
            assert mine is theirs
        else:
            assert all(map(torch.equal, mine, theirs))


@pytest.mark.parametrize(
    ("name", "attribute"),
    [
        ("RMSNorm", "variance_epsilon"),
        ("GemmaRMSNorm", "variance_epsilon"),
        ("Gemma3RMSNorm", "eps"),
        ("LayerNorm", "variance_epsilon"),
        ("RotaryEmbedding", "is_neox_style"),
        ("MRotaryEmbedding", "is_neox_style"),
        ("GeluAndMul", "approximate"),
        ("SituAndMul", "beta"),
    ],
)
def test_what_is_changed_is_seen(name: str, attribute: str):
    layer, given, more = new_layer(name)
    put(references(), layer)
    before = outcome(layer, given, more)
    value = getattr(layer, attribute)
    setattr(layer, attribute, {"tanh": "none", True: False}.get(value, 7.5))
    after = outcome(layer, given, more)
    native = layer.forward_native(*clones(given))
    native = [native] if isinstance(native, Tensor) else native
    assert not torch.equal(after[0], before[0])
    for mine, theirs in zip(after, native, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_norm_that_becomes_what_no_contract_can_express_is_sglangs_until_it_is_changed_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(RMSNorm, "forward_native", lambda self, x, *_: "SGLang's own")
    layer, x = put(references(tmp_path / "log"), RMSNorm(8)), torch.randn(2, 8)
    layer._forward_method(x)
    for number in range(3):
        layer.override_orig_dtype = torch.float32
        assert layer._forward_method(x) == "SGLang's own"
        layer.override_orig_dtype = None
        layer.variance_size_override = 2 + number
        x32 = x[:, : 2 + number].square().mean(-1, keepdim=True)
        torch.testing.assert_close(layer._forward_method(x), x * torch.rsqrt(x32 + layer.variance_epsilon))
    assert is_ours(layer._forward_method)
    assert told(tmp_path / "log") == ["reference(reference)", "sglang(native)"]


EXPERTS: dict[str, dict[str, Any]] = {
    "factor": {"routed_scaling_factor": 2.5},
    "gpt-oss": {"gemm1_alpha": 1.7, "gemm1_clamp_limit": 7.0},
    "weighted-input": {"apply_router_weight_on_input": True},
    "activation": {"activation": "gelu"},
    "not-combined": {"no_combine": True},
    "limit": {"swiglu_limit": 7.0},
    "permuted": {"w13_swiglu_interleaved": True},
    "biases": {"with_bias": True},
}


@pytest.mark.parametrize("path", ["forward_native", "forward_cuda"])
@pytest.mark.parametrize("changed", EXPERTS.values(), ids=EXPERTS)
def test_experts_whose_configuration_is_changed_are_as_those_that_always_had_it(
    changed: dict[str, Any], path: str, monkeypatch: pytest.MonkeyPatch
):
    method, call = experts()
    monkeypatch.setattr(type(method), path, lambda *_, **__: ["SGLang's own"])
    call["layer"].w13_weight_bias, call["layer"].w2_weight_bias = torch.randn(4, 16), torch.randn(4, 8)
    always = copy.deepcopy(method)
    put(references(), method, lambda layer: getattr(layer, path))
    before = method._forward_method(**call)[0]
    for each in (always, method):
        for name, value in changed.items():
            config = each.moe_runner_config
            setattr(config if hasattr(config, name) else each, name, value)
    put(references(), always, lambda layer: getattr(layer, path))
    mine, theirs = (each._forward_method(**call)[0] for each in (method, always))
    if isinstance(theirs, str):
        assert mine == theirs
    else:
        assert torch.equal(mine, theirs)
        is_the_models = path == "forward_native" and "routed_scaling_factor" in changed
        assert torch.equal(mine, before) == is_the_models


def test_a_norm_without_scale_can_have_a_gradient_after_calls_in_inference_mode():
    layer = put(references(), RMSNormWithoutScale(8))
    with torch.inference_mode():
        for _ in range(2):
            layer._forward_method(torch.randn(2, 8))
    with torch.enable_grad():
        x = torch.randn(2, 8, requires_grad=True)
        layer._forward_method(x).sum().backward()
        assert x.grad is not None


def test_a_norm_without_scale_makes_its_ones_in_its_first_call(monkeypatch: pytest.MonkeyPatch):
    """The second may be captured in a graph, which fills what is made then only as it is replayed."""
    layer, x = put(references(), RMSNormWithoutScale(24)), torch.randn(2, 24)
    first = layer._forward_method(x)
    monkeypatch.setattr(torch, "ones", None)
    assert torch.equal(layer._forward_method(x), first)

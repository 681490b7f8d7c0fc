"""The life of a layer: nothing of a call outlives it, and copies of a layer live for themselves."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import norm_layers
from norm_layers import Layer, Norm, arguments, excluded
from sglang_fl.dispatch.life import LayerLife
from sglang_fl.dispatch.plan import Forward
from sglang_fl.errors import REFUSALS

#: Fixtures.
layer, module = norm_layers.layer, norm_layers.module
ALIVE = """
    from sglang_fl.errors import UnsupportedError

    def failing(x, weight, eps, residual=None):
        raise RuntimeError("launch failed")

    def refusing(x, weight, eps, residual=None):
        raise UnsupportedError("not this one")

    def chained(x, weight, eps, residual=None):
        try:
            failing(x, weight, eps, residual)
        except RuntimeError as error:
            raise ValueError("a second one") from error
"""


@pytest.mark.parametrize(
    "kernel", ["failing", "refusing", "chained", "missing", "no_such_package.kernels:rms"]
)
@pytest.mark.parametrize("last", ["reference", ""], ids=["replaced", "left to SGLang"])
def test_no_tensor_of_a_call_outlives_it(layer: Callable[..., Layer], write_module, kernel: str, last: str):
    target = kernel if ":" in kernel else f"{write_module(ALIVE)}:{kernel}"
    alive = []
    kept = []
    gc.disable()  # what only the collector would free counts as alive
    try:
        for _ in range(3):
            rms = layer(target, *filter(None, [last]), or_own=not last)
            given = arguments()
            alive += [weakref.ref(value) for value in given.values() if isinstance(value, Tensor)]
            rms(**given)
            kept.append(rms)
            del given, rms
        assert [ref for ref in alive if ref() is not None] == []
    finally:
        gc.enable()


def test_a_copy_of_a_decided_layer_is_bound_to_itself(layer: Callable[..., Layer]):
    rms = layer("reference", bind=scaling)
    rms.layer.scale = 2.0
    rms(**arguments())
    twin = copy.deepcopy(rms.layer)
    twin.scale = 3.0
    assert twin._forward_method.__self__ is twin
    ours, theirs = (each._forward_method(**arguments())[0] for each in (rms.layer, twin))
    assert torch.allclose(ours * 1.5, theirs)


def scaling(layer: Any, kernel: Callable[..., Any], own: Any) -> Forward:
    """Bind as an adapter that reads the layer in each call."""

    def forward(layer: Any, **kwargs: Any) -> Any:
        try:
            normed, total = kernel(**kwargs)
            return normed * layer.scale, total
        except REFUSALS as refusal:
            own.because(refusal)
        return own(layer, **kwargs)

    return forward


def test_a_copy_of_a_layer_before_its_first_call_decides_for_itself(layer: Callable[..., Layer]):
    rms = layer("reference", bind=scaling)
    rms.layer.scale = 2.0
    twin = copy.deepcopy(rms.layer)
    twin.scale = 3.0
    twin._forward_method(**arguments())
    assert twin._forward_method.__self__ is twin
    assert isinstance(rms.layer._forward_method, LayerLife)


def test_excluded_calls_of_a_copy_go_to_sglangs_forward_of_the_copy(layer: Callable[..., Layer]):
    rms = layer("reference")
    rms(**arguments())
    twin = copy.deepcopy(rms.layer)
    twin.forward_native = None  # type: ignore[method-assign] - the function is the class's
    seen = []
    Norm.forward_native, kept = lambda self, **given: seen.append(self), Norm.forward_native  # type: ignore
    try:
        later = layer("reference")
        later(**arguments())
        another = copy.deepcopy(later.layer)
        another._forward_method(**excluded())
    finally:
        Norm.forward_native = kept  # type: ignore[method-assign]
    assert seen == [another]


@pytest.mark.parametrize("calls", [0, 1])
def test_a_pickled_layer_has_sglangs_own_forward_as_without_the_plugin(
    layer: Callable[..., Layer], calls: int
):
    rms = layer("reference")
    for _ in range(calls):
        rms(**arguments())
    twin = pickle.loads(pickle.dumps(rms.layer))
    assert twin._forward_method == twin.forward_native

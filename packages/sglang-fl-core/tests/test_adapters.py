"""Which layer classes an adapter covers: the class it is for, and subclasses that compute the same.

And what an adapter reads from a layer.
"""

import copy
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from sglang_fl.ops import OPS
from sglang_fl.sglang_adapter.layers import ADAPTERS as ADAPTERS_OF_SGLANG
from sglang_fl.sglang_adapter.layers.adapter import (
    Adapter,
    buffer,
    by_layer_class,
    covering,
    parameter,
    submodule,
)

pytestmark = pytest.mark.usefixtures("forked")


class Norm:
    def forward(self, x: object) -> object:
        return x

    def forward_cuda(self, x: object) -> object:
        return x


class WithOtherState(Norm):
    limit = 3

    def __init__(self) -> None:
        self.limit = 4

    def extra_repr(self) -> str:
        return "limit=4"


class OfThat(WithOtherState):
    pass


class WithOwnForward(Norm):
    def forward(self, x: object) -> object:
        return [x]


class WithOwnPathOfOneDevice(Norm):
    def forward_npu(self, x: object) -> object:
        return [x]


class BelowOwnForward(WithOwnForward):
    pass


class Mixin:
    def forward_native(self, x: object) -> object:
        return [x]


class PlainMixin:
    pass


class MixinFirst(Mixin, Norm):
    pass


class MixinLast(Norm, Mixin):
    pass


class PlainMixinFirst(PlainMixin, Norm):
    pass


class Unrelated:
    pass


class Outer:
    class Norm:
        """Another class of the same name, inside one of the same module."""

        def forward(self, x: object) -> object:
            return x


def adapter_for(cls: type) -> Adapter:
    name = f"{cls.__module__}:{cls.__qualname__}"
    return Adapter(name, OPS["rms_norm"], lambda layer, kernel, fall_through: kernel)


NORM = adapter_for(Norm)
ADAPTERS = by_layer_class([NORM])


@pytest.mark.parametrize("cls", [Norm, WithOtherState, OfThat, MixinLast, PlainMixinFirst])
def test_class_and_subclasses_that_compute_the_same_are_covered(cls: type):
    assert covering(cls, ADAPTERS) == (NORM,)


@pytest.mark.parametrize(
    "cls",
    [
        WithOwnForward,
        BelowOwnForward,
        WithOwnPathOfOneDevice,
        MixinFirst,
        Mixin,
        Unrelated,
        Outer.Norm,
        object,
    ],
)
def test_class_that_computes_something_else_is_not_covered(cls: type):
    assert covering(cls, ADAPTERS) == ()


@pytest.mark.parametrize("cls", [WithOwnForward, BelowOwnForward])
def test_nearest_class_with_an_adapter_counts(cls: type):
    own = adapter_for(WithOwnForward)
    adapters = by_layer_class([NORM, own])
    assert covering(cls, adapters) == (own,)
    assert covering(Norm, adapters) == (NORM,)


def test_a_class_may_have_several_adapters_in_the_order_of_the_list():
    other = adapter_for(Norm)
    assert covering(OfThat, by_layer_class([NORM, other])) == (NORM, other)


def test_class_in_another_module_with_the_same_name_is_not_covered():
    other = type("Norm", (), {"__module__": "elsewhere"})
    assert other.__qualname__ == "Norm"
    assert covering(other, ADAPTERS) == ()


def test_nothing_is_covered_without_adapters():
    assert covering(Norm, {}) == ()


def test_adapters_are_listed_without_importing_sglang():
    code = (
        "import sys; from sglang_fl.sglang_adapter.layers import ADAPTERS; "
        "print(len(ADAPTERS), 'sglang' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout == f"{len(ADAPTERS_OF_SGLANG)} False\n"


class Halved(torch.nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


def scaled() -> torch.nn.Module:
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(torch.ones(2))
    layer.register_buffer("cache", torch.zeros(2))
    return layer


def test_what_a_layer_holds_is_read_as_its_attribute_is_whatever_became_of_it():
    layer = scaled()
    assert parameter(layer, "weight") is layer.weight
    assert buffer(layer, "cache") is layer.cache
    layer.weight, layer.cache = torch.nn.Parameter(torch.full((2,), 3.0)), torch.full((2,), 4.0)
    assert (parameter(layer, "weight")[0], buffer(layer, "cache")[0]) == (3, 4)
    assert parameter(copy.deepcopy(layer), "weight") is not layer.weight
    swapped = {"weight": torch.full((2,), 5.0)}
    layer.forward = lambda: parameter(layer, "weight")
    assert torch.func.functional_call(layer, swapped, ()) is swapped["weight"]
    del layer.weight, layer.cache
    layer.weight, layer.cache = torch.full((2,), 6.0), None
    assert parameter(layer, "weight") is layer.weight
    assert buffer(layer, "cache") is None
    del layer.weight
    with pytest.raises(AttributeError, match="weight"):
        parameter(layer, "weight")


def test_what_is_no_module_is_read_too():
    layer = SimpleNamespace(weight=1, cache=2, norm=3)
    assert (parameter(layer, "weight"), buffer(layer, "cache"), submodule(layer, "norm")) == (1, 2, 3)


def test_a_parametrised_weight_is_computed_anew():
    layer = scaled()
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Halved())
    assert parameter(layer, "weight").tolist() == [0.5, 0.5]

"""What becomes of a layer: run by one of these candidates, or left to SGLang for this reason. Pure data.

``plan_layer`` only looks; ``life`` carries a plan out.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sglang_fl.dispatch.own_path import OwnPath, find_method
from sglang_fl.dispatch.resolution import Resolution
from sglang_fl.ops import Kernel, Op
from sglang_fl.vendor import BackendKind

__all__ = ["Bind", "Forward", "LayerPlan", "Own", "Translation", "plan_layer"]

Forward = Callable[..., Any]


class Own(Protocol):
    """SGLang's own forward of a layer, for the calls that are not ours."""

    path: OwnPath
    #: The name of the method, ``forward_native``.
    method: str

    def __call__(self, layer: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run it for ``layer``, which may be a copy of the layer that this object was made for."""

    def because(self, refusal: Exception) -> None:
        """Say once for each reason why a call is left to SGLang."""


#: ``bind(layer, kernel, own)`` returns ``forward(layer, ...)`` with the arguments of SGLang's forward. It is
#: put on the layer as a bound method. Tensors and attributes are read from ``layer`` in each call, as SGLang
#: itself reads them: they may be replaced, and the layer may be a copy. What is made of them for the kernel,
#: its options, is kept and made anew when they have changed.
#: It calls ``own(layer, ...)`` for calls that the contract cannot express, and where the kernel refuses one.
#: It raises ``UnsupportedError`` where the kernel does not take an option that the layer needs.
Bind = Callable[[Any, Kernel, Own], Forward]


class Translation(Protocol):
    """What a plan asks of an adapter."""

    @property
    def op(self) -> Op:
        """What the layer computes."""

    @property
    def bind(self) -> Bind:
        """See ``Bind``."""

    @property
    def why_not(self) -> Callable[[Any], str | None]:
        """Return None for a layer that it translates, else the reason."""


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one layer.

    Parameters
    ----------
    method : the name of SGLang's own method for it, ``forward_native``; empty where it could not be found
    reason : why it is SGLang's; None where it is ours
    is_fault : the reason is something that nobody intended, worth a warning
    is_asked : the user's order puts SGLang's own path first
    adapter : translates it; None where it is SGLang's
    resolution : the candidates of its op
    or_own : where no candidate can run it, SGLang does, for good; else that is an error
    """

    method: str
    reason: str | None = None
    is_fault: bool = False
    is_asked: bool = False
    adapter: Translation | None = None
    resolution: Resolution | None = None
    or_own: bool = False


def plan_layer(
    adapters: Iterable[Translation],
    layer: Any,
    own: Forward,
    resolutions: Mapping[str, Resolution],
    why_left_out: Callable[[type, str], str | None],
    stands_for: str | None = None,
) -> LayerPlan:
    """Plan a layer that is complete: by the first adapter that translates this very layer.

    Parameters
    ----------
    adapters : those that cover its class
    layer : the layer, or the object whose method is replaced
    own : SGLang's own forward of it
    resolutions : what may run each op, by the op's name
    why_left_out : ``why_left_out(layer_class, op_name)``: why the user leaves the layer to SGLang, or None
    stands_for : the method to take ``own`` for, where it is known to be no method of the layer

    Raises
    ------
    Exception : whatever an adapter raises on this layer, if the resolutions are strict
    """
    method = stands_for or find_method(own, layer)
    if method is None:
        return LayerPlan(
            "", f"its forward is {own!r}, behind which is no one method of SGLang's", is_fault=True
        )
    reasons = []
    is_asked = False
    for adapter in adapters:
        resolution = resolutions[adapter.op.name]
        try:
            left_out = why_left_out(type(layer), adapter.op.name) or resolution.sglang_first
            reason = left_out or adapter.why_not(layer)
        except Exception as error:  # an adapter that does not understand a foreign layer
            if resolution.strict:
                raise
            return LayerPlan(method, f"its adapter raised {type(error).__name__}: {error}", is_fault=True)
        if reason is None:
            return _ours(method, adapter, resolution)
        reasons.append(f"{adapter.op}: {reason}")
        is_asked |= resolution.sglang_first is not None and resolution.then_sglang
    return LayerPlan(method, "; ".join(reasons), is_asked=is_asked)


def _ours(method: str, adapter: Translation, resolution: Resolution) -> LayerPlan:
    is_last_resort = resolution.prefers_sglang and not OwnPath.of(method).is_pytorch
    if is_last_resort:  # SGLang's kernel, not the reference
        kernels = tuple(impl for impl in resolution.candidates if impl.kind is not BackendKind.REFERENCE)
        resolution = dataclasses.replace(resolution, candidates=kernels)
    or_own = is_last_resort or resolution.then_sglang
    return LayerPlan(method, adapter=adapter, resolution=resolution, or_own=or_own)

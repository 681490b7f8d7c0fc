"""An adapter translates one SGLang layer class to one op; this says which classes it covers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sglang_fl.dispatch.plan import Bind, Forward, Own
from sglang_fl.errors import REFUSALS
from sglang_fl.ops import Kernel, Op

__all__ = [
    "Adapter",
    "Bind",
    "Own",
    "bind_arguments",
    "bind_x",
    "buffer",
    "by_layer_class",
    "covering",
    "parameter",
    "submodule",
]


#: What serves as a layer and is no module holds none by kinds.
_NOTHING: dict[str, Any] = {}


def parameter(layer: Any, name: str) -> Any:
    """Return a layer's parameter, as the attribute of that name does.

    That takes six times as long, 0.6 µs (``torch.nn.Module.__getattr__``, PyTorch 2.14, Python 3.11). What
    is no parameter, as a plain tensor or under a parametrisation, is read as the attribute. A property of the
    layer's class, which Python would read first, is not looked for.
    """
    found = layer.__dict__.get("_parameters", _NOTHING).get(name)
    return getattr(layer, name) if found is None else found


def buffer(layer: Any, name: str) -> Any:
    """Return a layer's buffer likewise."""
    found = layer.__dict__.get("_buffers", _NOTHING).get(name)
    return getattr(layer, name) if found is None else found


def submodule(layer: Any, name: str) -> Any:
    """Return a layer within a layer likewise."""
    found = layer.__dict__.get("_modules", _NOTHING).get(name)
    return getattr(layer, name) if found is None else found


def bind_x(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return a forward for layers whose one argument is the contract's. See ``Bind``."""

    def forward(layer: Any, x: Any) -> Any:
        try:
            return kernel(x)
        except REFUSALS as refusal:
            own.because(refusal)
        return own(layer, x)

    return forward


def bind_arguments(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return a forward for methods whose arguments are the contract's, by position. See ``Bind``."""

    def forward(layer: Any, *arguments: Any) -> Any:
        try:
            return kernel(*arguments)
        except REFUSALS as refusal:
            own.because(refusal)
        return own(layer, *arguments)

    return forward


def _always(layer: Any) -> None:
    return None


@dataclass(frozen=True)
class Adapter:
    """The translation of one layer class.

    A class whose layers compute one op or another, by their attributes, has several.

    Parameters
    ----------
    layer_class : ``module:Class`` in SGLang; compared by name, never imported
    op : what it computes
    bind : see ``Bind``
    refuses : asked in a layer's first call; returns None, or the reason why this is no translation of it
    """

    layer_class: str
    op: Op
    bind: Bind
    refuses: Callable[[Any], str | None] = _always

    def why_not(self, layer: Any) -> str | None:
        """Say in a layer's first call why it is left to SGLang, or return None."""
        if self.op.may_depend_on_batch and is_batch_invariant():
            return "batch-invariant mode"
        return self.refuses(layer)


def is_batch_invariant() -> bool:
    """Whether a row's results may not depend on its batch, as SGLang's deterministic inference wants it.

    Then SGLang's own kernels must run, which it has chosen for that. It switches the mode on after the model
    is built and before anything runs.
    """
    from sglang.srt.batch_invariant_ops import is_batch_invariant_mode_enabled

    return bool(is_batch_invariant_mode_enabled())


def by_layer_class(adapters: Iterable[Adapter]) -> dict[str, tuple[Adapter, ...]]:
    """Group adapters by the class they are for; their order is kept."""
    grouped: dict[str, tuple[Adapter, ...]] = {}
    for adapter in adapters:
        grouped[adapter.layer_class] = (*grouped.get(adapter.layer_class, ()), adapter)
    return grouped


def covering(cls: type, adapters: dict[str, tuple[Adapter, ...]]) -> tuple[Adapter, ...]:
    """Return the adapters of the nearest class that has any; empty if there is none.

    A subclass is covered as long as nothing between it and that class defines a ``forward*`` method:
    then it only changes what the adapter reads from the layer, such as a cache. One whose ``forward`` only
    prepares the arguments and calls on has an adapter line of its own.
    """
    for ancestor in cls.__mro__:
        found = adapters.get(f"{ancestor.__module__}:{ancestor.__qualname__}")
        if found is not None:
            return found
        if any(name.startswith("forward") for name in vars(ancestor)):
            return ()
    return ()

"""An adapter translates one SGLang layer class to one op; this says which classes it covers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang_fl.ops import Kernel, Op

__all__ = ["Adapter", "Bind", "covering"]

#: ``bind(layer, kernel, fall_through)`` returns the forward of this one layer: it calls the kernel,
#: or ``fall_through``, SGLang's own path, for calls that the contract cannot express.
Bind = Callable[[Any, Kernel, Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Adapter:
    """The translation of one layer class.

    Parameters
    ----------
    layer_class : ``module:Class`` in SGLang; compared by name, never imported
    op : what it computes
    bind : see ``Bind``
    """

    layer_class: str
    op: Op
    bind: Bind


def covering(cls: type, adapters: dict[str, Adapter]) -> Adapter | None:
    """Return the adapter of the nearest class that has one, or None.

    A subclass is covered as long as nothing between it and that class defines a ``forward*``
    method: then it only changes what the adapter reads from the layer, such as a cache.
    """
    for ancestor in cls.__mro__:
        adapter = adapters.get(f"{ancestor.__module__}:{ancestor.__qualname__}")
        if adapter is not None:
            return adapter
        if any(name.startswith("forward") for name in vars(ancestor)):
            return None
    return None

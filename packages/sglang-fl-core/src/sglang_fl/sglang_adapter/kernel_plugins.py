"""Layers, and whole steps of a model, that SGLang lets a kernel plugin of somebody else run.

SGLang has three ways in for such a plugin: ``register_oot_forward`` for a layer class on an out-of-tree
platform; ``KernelBackend.PLUGIN``, a class that has ``forward_plugin``; and a forward of the whole model,
which runs some steps without asking a layer (``--enable-nvidia-megakernel``, ``--enable-amd-monokernel``).

A plugin is named by the package of the function that it gave to SGLang. Where that is SGLang's own, which
calls a library, the name cannot be known.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.sglang_adapter.source import PLUGIN_METHOD
from sglang_fl.sglang_adapter.telling import tell_when_run

__all__ = ["kernel_plugin_of", "label_of", "leave_to_plugin", "whole_step_kernels"]

Forward = Callable[..., Any]

#: ``KernelBackend.PLUGIN``.
_BACKEND = "plugin"


def kernel_plugin_of(layer: Any, own: Forward | None) -> str | None:
    """Say which kernel plugin SGLang lets run a layer, in all of its calls or in some.

    Parameters
    ----------
    layer : of a class of SGLang's
    own : SGLang's own forward of it; what others have put around it is looked through

    Returns
    -------
    str or None : as the dispatch log writes it, ``plugin:acme_kernels`` or ``plugin``; None: no plugin does
    """
    from_plugins = _forwards_of_plugins(type(layer))
    for function in _unwrapped(own):
        if any(function is found for found in from_plugins):
            return label_of(function)
    return label_of(getattr(type(layer), PLUGIN_METHOD)) if _picks_per_call(layer, own) else None


def label_of(function: Any) -> str:
    """Return how the dispatch log writes the plugin that a function, or the class of an object, is from."""
    package = (getattr(function, "__module__", None) or "").partition(".")[0]
    return _BACKEND if package in ("", "sglang") else f"{_BACKEND}:{package}"


def leave_to_plugin(layer: Any, method: str, log: DispatchLog) -> None:
    """Leave a layer to the kernel plugin that SGLang has for it, if any; logged once that has run.

    Parameters
    ----------
    layer : of a loaded model
    method : in which SGLang resolves a layer's kernel
    log : the dispatch log
    """
    if not _forwards_of_plugins(type(layer)) or _is_pinned(layer):
        return
    own = inspect.unwrap(getattr(type(layer), method))(layer)
    label = kernel_plugin_of(layer, own)
    if label is None:
        return
    # SGLang calls what stands in _forward_method, and asks nobody for another one.
    line = (type(layer).__name__, f"sglang({label})")
    if _picks_per_call(layer, own):
        layer._forward_method = own
        tell_when_run(layer, PLUGIN_METHOD, getattr(layer, PLUGIN_METHOD), *line, log)
    else:
        tell_when_run(layer, "_forward_method", own, *line, log)


def _is_pinned(layer: Any) -> bool:
    """Whether SGLang, or the model, has set the layer's forward to another method of the layer."""
    current = vars(layer).get("_forward_method")
    is_method = getattr(inspect.unwrap(current), "__self__", None) is layer
    return is_method and kernel_plugin_of(layer, current) is None


def whole_step_kernels(model: Any) -> Any:
    """Return the object of a kernel plugin whose ``forward`` runs whole steps of a model, or None."""
    if "_megakernel" in vars(model):
        return vars(model)["_megakernel"]
    if "_monokernel_unread_metadata" not in vars(model):
        return None
    # SGLang keeps the object in the closure of the forward that it has put on the model.
    functions = filter(inspect.isfunction, _unwrapped(model.forward))
    return next(
        (inspect.getclosurevars(f).nonlocals["built"] for f in functions if _closes_over_kernels(f)), None
    )


def _closes_over_kernels(function: Any) -> bool:
    return "built" in function.__code__.co_freevars


def _forwards_of_plugins(cls: type) -> list[Any]:
    """Return the functions through which SGLang reaches kernel plugins for a class."""
    by_platform = getattr(cls, "_oot_forward_registry", {}).values()
    found = [forwards[cls] for forwards in by_platform if cls in forwards]
    # The class that keeps the registry is the base of all; its forward_plugin says that there is none.
    below = [base for base in cls.__mro__ if "_oot_forward_registry" not in vars(base)]
    return found + [vars(base)[PLUGIN_METHOD] for base in below if PLUGIN_METHOD in vars(base)]


def _picks_per_call(layer: Any, own: Forward | None) -> bool:
    """Whether SGLang asks in each call which backend of a layer takes it, and a plugin is one of them."""
    if not any(getattr(f, "__name__", "") == "_forward_backend_dynamic" for f in _unwrapped(own)):
        return False
    return any(backend.value == _BACKEND for backend in layer._dynamic_backend_candidates)


def _unwrapped(own: Forward | None) -> Iterator[Any]:
    """Yield a forward's function and those that it stands around, through partials and wrappers."""
    inner: Any = own
    while inner is not None:
        yield getattr(inner, "__func__", inner)
        inner = inner.func if isinstance(inner, functools.partial) else getattr(inner, "__wrapped__", None)

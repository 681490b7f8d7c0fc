"""Kernels that are methods of objects, not layers, and are replaced on the object, once.

An attention backend holds such objects: SGLang's own for the gated delta rule, ours for attention itself.
SGLang's Triton backend is one itself: it holds its kernels as functions. A model holds others: what an
attention layer computes between its projection and attention.

The convolution of linear attention is in no object: the backend's code calls it by names of a module. These
are replaced in the module, for all backends of the process, and count as the backend's functions.
"""

import functools
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from sglang_fl.dispatch.life import NATIVE, is_ours
from sglang_fl.sglang_adapter.layers import (
    attention,
    causal_convolution,
    gated_delta_rule,
    qk_norm_rope,
    state_space,
    triton_attention,
)
from sglang_fl.sglang_adapter.layers.adapter import Adapter

__all__ = ["PLAIN_KERNELS", "TARGET", "Method", "methods_of", "methods_of_model"]

#: The function that SGLang calls last when it builds an attention backend; one name in all releases.
TARGET = "sglang.srt.layers.attention.attention_registry.attn_backend_wrapper"

#: Where a linear attention backend keeps objects of ours by which it computes; then no Triton kernel can run.
PLAIN_KERNELS = "plain_kernels"
_OF_PLAIN_KERNELS = {
    causal_convolution.CLASS: causal_convolution.METHODS,
    state_space.CLASS: state_space.ADAPTERS,
}
#: Of the layers of a model, by their class.
_OF_LAYERS = {adapter.layer_class.rpartition(".")[0]: adapter for adapter in qk_norm_rope.ADAPTERS}
#: Where backends keep others: hybrid models, one for prefill and one for decode, two batches at a time.
_PARTS = ("full_attn_backend", "prefill_backend", "decode_backend", "primary")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Method:
    """A method of a kernel object, which can be replaced in that object alone.

    Parameters
    ----------
    kernel : the object
    adapter : translates the method's arguments
    is_pytorch : whether the method is plain PyTorch, and so no better than a reference
    is_function : whether it is a function that the object holds, and none of its class
    module : the module by whose name the object's code calls it, and in which it is replaced; None: it is the
        object's own
    """

    kernel: Any
    adapter: Adapter
    is_pytorch: bool = False
    is_function: bool = False
    module: ModuleType | None = None

    @property
    def name(self) -> str:
        """As the attention backend calls it: ``extend``."""
        return self.adapter.layer_class.rpartition(".")[2]

    @property
    def stands_for(self) -> str | None:
        """The method that ``current`` is to be taken for, where it is none of the object's class."""
        if self.is_pytorch:
            return "forward_native"
        return self.name if self.is_function else None

    @property
    def own_title(self) -> str:
        """For logs: what runs where no candidate does, which an object of ours computes by the reference."""
        return "reference(reference)" if type(self.kernel).__module__.startswith("sglang_fl.") else NATIVE

    @property
    def title(self) -> str:
        """For logs: ``TritonGDNKernel.extend``."""
        return f"{type(self.kernel).__name__}.{self.name}"

    @property
    def current(self) -> Callable[..., Any]:
        """What is called now."""
        method: Callable[..., Any] = getattr(self.module or self.kernel, self.name)
        return method

    def put(self, forward: Callable[..., Any]) -> None:
        """Let this be called instead."""
        setattr(self.module or self.kernel, self.name, forward)

    def commit(self, kernel: Any, life: Callable[..., Any], forward: Callable[..., Any]) -> None:
        """Let the bound kernel be called from now on, unless somebody has taken the place of ``life``."""
        holder = self.module or kernel  # the object, or a copy of it
        if getattr(holder, self.name, None) is life:
            setattr(holder, self.name, forward)


def methods_of(backend: Any) -> Iterator[Method]:
    """Yield the methods of the kernel objects of an attention backend, each once.

    Parameters
    ----------
    backend : as SGLang has built it, which may hold others; None has none
    """
    linear = getattr(backend, "linear_attn_backend", None)
    plain: tuple[Any, ...] = getattr(linear, PLAIN_KERNELS, ())
    for kernel in plain:
        yield from (Method(kernel, adapter, is_pytorch=True) for adapter in _OF_PLAIN_KERNELS[_path(kernel)])
    for kernel in _once(_delta_rule_kernels(linear)):
        yield from (Method(kernel, adapter, bool(plain)) for adapter in gated_delta_rule.ADAPTERS)
    if not plain:
        yield from _called_by_name(linear)
    for each in _once(_backends(backend)):
        kernels = vars(each).get("kernels")
        if _path(kernels) == attention.CLASS:
            yield from (Method(kernels, adapter, is_pytorch=True) for adapter in attention.ADAPTERS)
        if _path(each) == triton_attention.CLASS:
            yield from (Method(each, adapter, is_function=True) for adapter in triton_attention.ADAPTERS)


def methods_of_model(model: Any) -> Iterator[Method]:
    """Yield the methods of the layers of a loaded model."""
    for layer in model.modules():
        adapter = _OF_LAYERS.get(_path(layer))
        if adapter is not None:
            yield Method(layer, adapter)


def _delta_rule_kernels(linear: Any) -> Iterator[Any]:
    dispatcher = getattr(linear, "kernel_dispatcher", None)
    for role in ("decode_kernel", "extend_kernel"):
        kernel = getattr(dispatcher, role, None)
        if _path(kernel) == gated_delta_rule.CLASS:
            yield kernel


def _called_by_name(linear: Any) -> Iterator[Method]:
    """Yield what a backend calls by names of a module: all, or nothing where one is not as we know it."""
    backend = _path(linear)
    module = sys.modules.get(causal_convolution.MODULES.get(backend, ""))
    if module is None:
        return
    methods = [
        Method(linear, adapter, is_function=True, module=module)
        for adapter in causal_convolution.NAMES[backend]
    ]
    found = {method.title: vars(module).get(method.name) for method in methods}
    others = {name: f for name, f in found.items() if not (causal_convolution.is_known(f) or is_ours(f))}
    if not others:
        yield from methods
    for name, function in others.items():
        if function is not None and causal_convolution.is_another_plugins(function):
            _warn_once(f"{name} is not SGLang's, but {function!r}: {', '.join(found)} stay as they are")


@functools.cache
def _warn_once(complaint: str) -> None:
    logger.warning("%s", complaint)


def _backends(backend: Any) -> Iterator[Any]:
    """Yield a backend and those that it holds."""
    if backend is None:
        return
    yield backend
    for part in (*(vars(backend).get(name) for name in _PARTS), *vars(backend).get("children", ())):
        yield from _backends(part)


def _path(kernel: Any) -> str:
    return f"{type(kernel).__module__}:{type(kernel).__qualname__}"


def _once(kernels: Iterator[Any]) -> Iterator[Any]:
    seen: list[Any] = []
    for kernel in kernels:
        if not any(kernel is other for other in seen):
            seen.append(kernel)
            yield kernel

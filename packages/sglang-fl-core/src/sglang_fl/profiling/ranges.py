"""Marks in a trace, put around what runs: only in processes that ``sglang-fl profile`` has started."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import record_function

from sglang_fl.aten.record_log import Recording
from sglang_fl.dispatch import layer_2_calls
from sglang_fl.ops import Kernel, Op
from sglang_fl.profiling.labels import ATEN, ATTENTION, DECODE, LAYER, OURS, PREFILL, SHORTCUT, STEP, Label
from sglang_fl.vendor import AtenKernel, OpImpl

__all__ = ["AtenRanges", "LayerRanges", "mark_kernel", "mark_shortcut", "step_range"]


def mark_kernel(op: Op, impl: OpImpl, layer: Any, kernel: Kernel) -> Kernel:
    """Return a kernel of layer 2 with a range around it; its signature stays the same."""
    # A layer that keeps its forward so is computed by the kernel as a whole; others have methods that are.
    layer_class = type(layer).__name__ if hasattr(layer, "_forward_method") else ""
    return _within(Label(OURS, (op.name, str(impl.kind), layer_class)), kernel)


def mark_shortcut(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of SGLang past a layer with a range around it."""
    return _within(Label(SHORTCUT, (name,)), function)


def step_range(batch: Any) -> Any:
    """Return the range of a batch of SGLang's scheduler; it is entered with ``with``."""
    mode = batch.forward_mode
    phase = DECODE if mode.is_decode() else PREFILL if mode.is_extend() else mode.name.lower()
    requests = batch.batch_size()
    tokens = getattr(batch, "extend_num_tokens", None) if phase == PREFILL else requests
    return record_function(str(Label(STEP, (phase, str(requests), str(tokens or requests)))))


def _within(label: Label, function: Callable[..., Any]) -> Callable[..., Any]:
    name = str(label)

    @functools.wraps(function)
    def marked(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        with record_function(name):
            return function(*args, **kwargs)

    return marked


class AtenRanges:
    """Puts a range around each call of a kernel of layer 1 that no kernel of layer 2 has caused.

    Parameters
    ----------
    record : gets each call, too; or None
    """

    def __init__(self, record: Recording | None = None) -> None:
        self._record = record

    def recording(self, kernel: AtenKernel) -> Callable[..., Any]:
        """Return the kernel's function with a range around it."""
        function = self._record.recording(kernel) if self._record else kernel.function
        # Vendor packages keep the chip's own kernels in their folder ``vendor``; all else is Triton's.
        kind = "vendor" if ".vendor." in kernel.origin else "flagos"
        marked = _within(Label(ATEN, (f"aten::{kernel.overload.partition('.')[0]}", kind)), function)

        @functools.wraps(function)
        def unless_in_layer_2(*args: Any, **kwargs: Any) -> Any:
            return (function if layer_2_calls.is_running() else marked)(*args, **kwargs)

        return unless_in_layer_2


class LayerRanges:
    """Puts a range around each call of each layer, while it is on.

    Parameters
    ----------
    attention_backend : called with no argument, returns the name of the one that runs now
    """

    def __init__(self, attention_backend: Callable[[], str]) -> None:
        self._attention_backend = attention_backend
        self._open: list[Any] = []
        self._hooks: list[Any] = []

    def switch_on(self) -> None:
        """Mark calls of layers from now on."""
        modules = torch.nn.modules.module
        self._hooks = [
            modules.register_module_forward_pre_hook(self._enter),
            modules.register_module_forward_hook(self._leave, always_call=True),
        ]

    def switch_off(self) -> None:
        """End that."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _enter(self, layer: torch.nn.Module, given: Any) -> None:
        if torch.compiler.is_compiling():
            return
        range_: Any = record_function(str(self._label(type(layer).__name__)))
        range_.__enter__()
        self._open.append(range_)

    def _leave(self, layer: torch.nn.Module, given: Any, results: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self._open.pop().__exit__(None, None, None)

    def _label(self, layer_class: str) -> Label:
        if layer_class == "RadixAttention":
            return Label(ATTENTION, (self._attention_backend(),))
        return Label(LAYER, (layer_class,))

"""The one hook of layer 2: AROUND the method in which SGLang resolves a layer's kernel."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_fl.dispatch.life import Choice, FirstCall, Forward
from sglang_fl.dispatch.resolution import Resolution
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.ops import Kernel, Op
from sglang_fl.sglang_adapter import hooks_applied
from sglang_fl.sglang_adapter.layer_lists import LayerLists
from sglang_fl.sglang_adapter.layers import ADAPTERS, gated_delta_rule
from sglang_fl.sglang_adapter.layers.adapter import Adapter, covering
from sglang_fl.sglang_adapter.seams import Seam
from sglang_fl.vendor import BackendKind

__all__ = ["LayerHook", "Wrap", "install"]

logger = logging.getLogger(__name__)

#: SGLang's own forwards that are plain PyTorch, and no better than the reference.
PYTORCH_PATHS = ("forward_native", "forward_cpu")


Wrap = Callable[[Op, Any, Kernel], Kernel]


class LayerHook:
    """Decides for each layer whether we run it; asks only for its class, never for its state.

    Parameters
    ----------
    resolutions : what may run each op
    log : the dispatch log
    lists : the layers that the user leaves to SGLang
    wrap : ``wrap(op, layer, kernel)`` returns what is bound to a layer instead of a kernel: one that is
        marked for the record of layer 1, or checked; None binds the kernel itself
    """

    def __init__(
        self,
        resolutions: dict[str, Resolution],
        log: DispatchLog,
        lists: LayerLists | None = None,
        wrap: Wrap | None = None,
    ) -> None:
        self._resolutions = resolutions
        self._log = log
        self._lists = lists or LayerLists()
        self._wrap = wrap
        self._reported: set[str] = set()

    def __call__(self, original: Callable[[Any], Forward], layer: Any) -> Forward:
        """Return the layer's forward: ours if an adapter covers its class, else SGLang's own object.

        SGLang compares that object with its own methods, so it is handed on untouched. A layer that the
        lists leave out gets it with its first call, of which the dispatch log tells.
        """
        own = original(layer)
        layer_class: type = type(layer)
        adapters = _adapters_of(layer_class)
        if not adapters:
            return own
        return self._first_call(adapters, layer, layer_class.__name__, own, partial(_commit, layer))

    def tell_of_torch_compile(self, entered: None, layer: Any, *args: Any, **kwargs: Any) -> None:
        """Log that SGLang has put a layer's plain PyTorch path in place for ``torch.compile`` to trace.

        Routers and experts keep what runs them where there is more than one token.
        """
        layer_class: type = type(layer)
        name = getattr(layer._forward_method, "__name__", "")  # (fused_moe_)forward_native
        if name.endswith("forward_native") and _adapters_of(layer_class):
            self._log.write(layer_class.__name__, "sglang(torch.compile)")

    def replace_linear_attention(self, backend: Any) -> None:
        """Take over the kernels of an attention backend that SGLang has just built; see its adapter."""
        for method in gated_delta_rule.methods_of(backend):
            method.put(self._first_call_of(method))

    def take_over(self, layer: Any, own: Forward) -> FirstCall | None:
        """Return what would run a layer that is complete, or None where it is SGLang's; it is not put there.

        Parameters
        ----------
        layer : of a loaded model
        own : SGLang's own forward of the layer
        """
        layer_class: type = type(layer)
        adapters, commit = _adapters_of(layer_class), partial(_commit, layer)
        return _complete(self._first_call(adapters, layer, layer_class.__name__, own, commit))

    def take_over_method(self, method: gated_delta_rule.Method) -> FirstCall | None:
        """Return the same for a method of a kernel that is no layer."""
        return _complete(self._first_call_of(method))

    def _first_call(
        self,
        adapters: tuple[Adapter, ...],
        layer: Any,
        name: str,
        own: Forward,
        commit: Callable[[Forward, Forward], None],
    ) -> FirstCall:
        return FirstCall(partial(self._choose, adapters, layer, own), name, own, commit, self._log)

    def _first_call_of(self, method: gated_delta_rule.Method) -> FirstCall:
        own = method.current
        return self._first_call((method.adapter,), method.kernel, method.title, own, method.commit)

    def _choose(self, adapters: tuple[Adapter, ...], layer: Any, own: Forward) -> Choice | None:
        """Return how the first adapter that translates this very layer would run it."""
        for adapter in adapters:
            reason = self._lists.why_left_out(type(layer), adapter.op.name) or adapter.why_not(layer)
            if reason is None:
                resolution = self._resolutions[adapter.op.name]
                or_own = resolution.prefers_sglang and own.__name__ not in PYTORCH_PATHS
                if or_own:
                    resolution = _without_reference(resolution)
                self._report(resolution)
                return Choice(resolution, self._bind(adapter, layer), or_own)
            _say_left_out(type(layer).__name__, adapter.op.name, reason)
        return None

    def _bind(self, adapter: Adapter, layer: Any) -> Callable[[Kernel, Forward], Forward]:
        wrap = self._wrap
        if wrap is None:
            return partial(adapter.bind, layer)
        return lambda kernel, fall_through: adapter.bind(layer, wrap(adapter.op, layer, kernel), fall_through)

    def _report(self, resolution: Resolution) -> None:
        """Say once for each op that what was asked for first is not to be had here."""
        if resolution.passed_over and resolution.op.name not in self._reported:
            self._reported.add(resolution.op.name)
            reasons = "; ".join(map(str, resolution.passed_over))
            runs = resolution.candidates[0] if resolution.candidates else "SGLang's own kernel"
            logger.info("%s runs on %s (%s)", resolution.op, runs, reasons)


def _complete(first: FirstCall) -> FirstCall | None:
    """Return it, or None where it would leave the layer to SGLang."""
    return None if first.op is None else first


def _without_reference(resolution: Resolution) -> Resolution:
    kernels = tuple(impl for impl in resolution.candidates if impl.kind is not BackendKind.REFERENCE)
    return dataclasses.replace(resolution, candidates=kernels)


@functools.cache
def _adapters_of(cls: type[Any]) -> tuple[Adapter, ...]:
    found = covering(cls, ADAPTERS)
    if not found:
        logger.debug("%s has no adapter and stays SGLang's", cls.__qualname__)
    return found


@functools.cache
def _say_left_out(layer_class: str, op: str, reason: str) -> None:
    logger.debug("%s does not run %s: %s", layer_class, op, reason)


def _commit(layer: Any, first: Forward, bound: Forward) -> None:
    """Let SGLang call the bound kernel itself from now on.

    Only where it still holds the first callable: ``enter_torch_compile`` puts another one there, and
    some callers ask for the forward without storing it.
    """
    if layer._forward_method is first:
        layer._forward_method = bound


def install(
    seam: Seam,
    hook: LayerHook,
    when_applied: Callable[[], None],
    when_loaded: Callable[[Any], None] = lambda model: None,
) -> None:
    """Register the hook.

    Parameters
    ----------
    seam : where
    hook : what
    when_applied : called as soon as SGLang has applied its hooks, in the same process
    when_loaded : called with each model, in the process that has loaded it and before it runs

    Raises
    ------
    SeamError : the method to hook is not there
    """
    seam.require()
    HookRegistry.register(seam.target, hook, HookType.AROUND)
    HookRegistry.register(f"{seam.owner}.enter_torch_compile", hook.tell_of_torch_compile, HookType.AFTER)

    def replace_linear_attention(backend: Any, runner: Any, *args: Any) -> None:
        model = getattr(runner, "model", None)
        if model is not None:
            when_loaded(model)
        hook.replace_linear_attention(backend)

    HookRegistry.register(gated_delta_rule.TARGET, replace_linear_attention, HookType.AFTER)
    hooks_applied.when_applied(when_applied)

"""The one hook of layer 2: AROUND the method in which SGLang resolves a layer's kernel.

It puts a ``LayerLife`` in the place of SGLang's own forward, and decides nothing: ``dispatch.plan`` does.
"""

import functools
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_fl.dispatch.life import LayerLife, Wrap, is_ours
from sglang_fl.dispatch.plan import Forward, LayerPlan, plan_layer
from sglang_fl.dispatch.resolution import Resolution
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.sglang_adapter import hooks_applied
from sglang_fl.sglang_adapter.kernel_plugins import kernel_plugin_of
from sglang_fl.sglang_adapter.layer_lists import LayerLists
from sglang_fl.sglang_adapter.layers import ADAPTERS
from sglang_fl.sglang_adapter.layers.adapter import Adapter, covering
from sglang_fl.sglang_adapter.methods import TARGET, Method, methods_of, methods_of_model
from sglang_fl.sglang_adapter.seams import Seam

__all__ = ["LayerHook", "Wrap", "install"]

logger = logging.getLogger(__name__)

#: The name of SGLang's plain PyTorch path.
_NATIVE = "forward_native"


class LayerHook:
    """Gives each layer that an adapter covers its ``LayerLife``; asks for its class, never for its state.

    Parameters
    ----------
    resolutions : what may run each op
    log : the dispatch log
    lists : the layers that the user leaves to SGLang
    wrap : ``wrap(op, impl, layer, kernel)`` returns what is bound to a layer instead of a kernel: one that is
        marked for the record of layer 1, checked, or whose calls are kept; None binds the kernel itself
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
        """Return the layer's forward: its life if an adapter covers its class, else SGLang's own object.

        SGLang compares that object with its own methods, so it is handed on untouched. A layer that the
        lists leave out gets it with its first call, of which the dispatch log tells.

        Raises
        ------
        Exception : what looking at the layer's class raises, if the resolutions are strict
        """
        own = original(layer)
        layer_class: type = type(layer)
        try:
            adapters = _adapters_of(layer_class)
        except Exception as error:
            if any(resolution.strict for resolution in self._resolutions.values()):
                raise
            _warn_once(f"{layer_class.__name__} is left to SGLang: {type(error).__name__}: {error}")
            return own
        return self._life(adapters, layer, layer_class.__name__, own, _commit) if adapters else own

    def tell_of_torch_compile(self, entered: None, layer: Any, *args: Any, **kwargs: Any) -> None:
        """Log that SGLang has put a layer's plain PyTorch path in place for ``torch.compile`` to trace.

        Routers and experts keep what runs them where there is more than one token.
        """
        forward = layer._forward_method
        layer_class: type = type(layer)
        name = getattr(forward, "__name__", "")  # (fused_moe_)forward_native
        if name.endswith("forward_native") and not is_ours(forward) and _adapters_of(layer_class):
            self._log.write(layer_class.__name__, "sglang(torch.compile)")

    def replace_methods(self, backend: Any) -> None:
        """Take over the kernels of an attention backend that SGLang has just built; see ``methods``.

        What stands in a module serves all backends. Where it has become SGLang's own again, the next backend
        that is built lets it be decided anew.
        """
        for method in methods_of(backend):
            if not is_ours(method.current):
                method.put(self._life_of(method))

    def replace_methods_of_model(self, model: Any) -> None:
        """Take over the methods of a loaded model's layers where something of ours may run them.

        The others are left untouched, and nothing is logged of them: SGLang's own call layers, of which each
        tells the log itself.
        """
        for method in methods_of_model(model):
            life = None if is_ours(method.current) else self.take_over_method(method)
            if life is not None:
                method.put(life)

    def take_over(self, layer: Any, own: Forward) -> LayerLife | None:
        """Return what would run a layer that is complete, or None where it is SGLang's; it is not put there.

        Parameters
        ----------
        layer : of a loaded model
        own : SGLang's own forward of the layer
        """
        layer_class: type = type(layer)
        life = self._life(_adapters_of(layer_class), layer, layer_class.__name__, own, _commit)
        return life if life.op else None

    def take_over_method(self, method: Method) -> LayerLife | None:
        """Return the same for a method of a kernel that is no layer, where there is a candidate."""
        life = self._life_of(method)
        resolution = life.plan.resolution
        return life if resolution is not None and resolution.candidates else None

    def _life(
        self,
        adapters: tuple[Adapter, ...],
        layer: Any,
        name: str,
        own: Forward,
        commit: Callable[[Any, Forward, Forward], None],
    ) -> LayerLife:
        return LayerLife(partial(self._plan, adapters), layer, name, own, commit, self._log, self._wrap)

    def _life_of(self, method: Method) -> LayerLife:
        plan = partial(self._plan, (method.adapter,))
        if method.stands_for is not None:
            plan = partial(plan, stands_for=method.stands_for)
        facts = (method.kernel, method.title, method.current, method.commit)
        return LayerLife(plan, *facts, self._log, self._wrap, method.own_title)

    def _plan(
        self, adapters: tuple[Adapter, ...], layer: Any, own: Forward, stands_for: str | None = None
    ) -> LayerPlan:
        # A kernel plugin's forward comes here only where the user named the op: ``loaded_models`` leaves the
        # other layers to the plugin. It computes what the plain path does.
        if kernel_plugin_of(layer, own):
            stands_for = _NATIVE
        plan = plan_layer(adapters, layer, own, self._resolutions, self._lists.why_left_out, stands_for)
        if plan.resolution is not None:
            self._report(plan.resolution)
        return plan

    def _report(self, resolution: Resolution) -> None:
        """Say once for each op that what was asked for first cannot run here."""
        if resolution.passed_over and resolution.op.name not in self._reported:
            self._reported.add(resolution.op.name)
            reasons = "; ".join(map(str, resolution.passed_over))
            runs = resolution.candidates[0] if resolution.candidates else "SGLang's own kernel"
            logger.info("%s runs on %s (%s)", resolution.op, runs, reasons)


@functools.cache
def _adapters_of(cls: type[Any]) -> tuple[Adapter, ...]:
    found = covering(cls, ADAPTERS)
    if not found:
        logger.debug("%s has no adapter and stays SGLang's", cls.__qualname__)
    return found


@functools.cache
def _warn_once(complaint: str) -> None:
    logger.warning("%s", complaint)


def _commit(layer: Any, life: Forward, forward: Forward) -> None:
    """Let SGLang call the bound kernel itself from now on.

    Only where it still holds the layer's life: ``enter_torch_compile`` puts another callable there, and
    some callers ask for the forward without storing it.
    """
    if layer._forward_method is life:
        layer._forward_method = forward


def install(
    seam: Seam,
    hook: LayerHook,
    when_applied: Callable[[], None],
    when_loaded: Callable[[Any], None] = lambda runner: None,
) -> None:
    """Register the hook.

    Parameters
    ----------
    seam : where
    hook : what
    when_applied : called as soon as SGLang has applied its hooks, in the same process
    when_loaded : called with SGLang's runner of each model, in the process that has loaded it and before it
        runs

    Raises
    ------
    SeamError : the method to hook is not there
    """
    seam.require()
    HookRegistry.register(seam.target, hook, HookType.AROUND)
    HookRegistry.register(f"{seam.owner}.enter_torch_compile", hook.tell_of_torch_compile, HookType.AFTER)

    def replace_methods(backend: Any, runner: Any, *args: Any) -> None:
        model = getattr(runner, "model", None)
        if model is not None:
            when_loaded(runner)
            hook.replace_methods_of_model(model)
        hook.replace_methods(backend)

    HookRegistry.register(TARGET, replace_methods, HookType.AFTER)
    hooks_applied.when_applied(when_applied)

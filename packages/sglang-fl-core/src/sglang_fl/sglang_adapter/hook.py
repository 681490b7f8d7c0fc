"""The one hook of layer 2: AROUND the method in which SGLang resolves a layer's kernel."""

import functools
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_fl.dispatch_log import DispatchLog
from sglang_fl.first_call import Forward, first_call, left_to_sglang
from sglang_fl.resolution import Resolution
from sglang_fl.sglang_adapter import ADAPTERS
from sglang_fl.sglang_adapter.adapter import Adapter, covering
from sglang_fl.sglang_adapter.layer_lists import LayerLists
from sglang_fl.sglang_adapter.seams import Seam

__all__ = ["LayerHook", "install"]

logger = logging.getLogger(__name__)


class LayerHook:
    """Decides for each layer whether we run it; asks only for its class, never for its state.

    Parameters
    ----------
    resolutions : what may run each op
    log : the dispatch log
    lists : the layers that the user leaves to SGLang
    """

    def __init__(
        self, resolutions: dict[str, Resolution], log: DispatchLog, lists: LayerLists | None = None
    ) -> None:
        self._resolutions = resolutions
        self._log = log
        self._lists = lists or LayerLists()
        self._reported: set[str] = set()

    def __call__(self, original: Callable[[Any], Forward], layer: Any) -> Forward:
        """Return the layer's forward: ours if an adapter covers its class, else SGLang's own object.

        SGLang compares that object with its own methods, so it is handed on untouched.
        """
        own = original(layer)
        layer_class: type = type(layer)
        adapter = _adapter_of(layer_class)
        if adapter is None:
            return own
        reason = self._lists.why_left_out(layer_class, adapter.op.name)
        if reason:
            self._report_left_out(layer_class.__name__, reason)
            return left_to_sglang(layer_class.__name__, own, partial(_commit, layer), self._log)
        resolution = self._resolutions[adapter.op.name]
        self._report(resolution)
        return first_call(
            resolution,
            layer_class.__name__,
            own,
            bind=partial(adapter.bind, layer),
            commit=partial(_commit, layer),
            log=self._log,
        )

    def _report_left_out(self, layer_class: str, reason: str) -> None:
        if layer_class not in self._reported:
            self._reported.add(layer_class)
            logger.debug("%s is left to SGLang: %s", layer_class, reason)

    def _report(self, resolution: Resolution) -> None:
        """Say once for each op that what was asked for first is not to be had here."""
        if resolution.passed_over and resolution.op.name not in self._reported:
            self._reported.add(resolution.op.name)
            reasons = "; ".join(map(str, resolution.passed_over))
            logger.info("%s runs on %s (%s)", resolution.op, resolution.candidates[0], reasons)


@functools.cache
def _adapter_of(cls: type[Any]) -> Adapter | None:
    found = covering(cls, ADAPTERS)
    if found is None:
        logger.debug("%s has no adapter and stays SGLang's", cls.__qualname__)
    return found


def _commit(layer: Any, first: Forward, bound: Forward) -> None:
    """Let SGLang call the bound kernel itself from now on.

    Only where it still holds the first callable: ``enter_torch_compile`` puts another one there, and
    some callers ask for the forward without storing it.
    """
    if layer._forward_method is first:
        layer._forward_method = bound


def install(seam: Seam, hook: LayerHook, when_applied: Callable[[], None]) -> None:
    """Register the hook.

    Parameters
    ----------
    seam : where
    hook : what
    when_applied : called as soon as SGLang has applied its hooks, in the same process

    Raises
    ------
    SeamError : the method to hook is not there
    """
    seam.require()
    HookRegistry.register(seam.target, hook, HookType.AROUND)
    own = vars(HookRegistry)["apply_hooks"]

    def apply_and_tell() -> None:
        # SGLang applies hooks after all plugins have run and swallows what goes wrong there; it
        # offers no later moment to a plugin. This stands for one call only.
        HookRegistry.apply_hooks = own
        HookRegistry.apply_hooks()
        when_applied()

    HookRegistry.apply_hooks = apply_and_tell

"""Two moments in a process that runs a model: its weights are loaded; from now on it serves requests."""

import sys
from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_fl.sglang_adapter.hooks_applied import when_applied
from sglang_fl.sglang_adapter.seams import MODELS_LOADED, SCHEDULER, SERVING

__all__ = ["install"]


def install(
    models_loaded: Callable[[Any], None], serving: Callable[[], None], check: Callable[..., None]
) -> bool:
    """Hook both, where a scheduler can run at all.

    A process that runs a model begins in SGLang's scheduler module and loads plugins afterwards; in the
    others that module, and half of SGLang with it, is not imported for our sake.

    Parameters
    ----------
    models_loaded : called once with SGLang's scheduler, before anything is warmed up or captured
    serving : called once, before the first request
    check : called for each seam with what was hooked there, as soon as SGLang has applied its hooks

    Returns
    -------
    bool : whether they were hooked

    Raises
    ------
    SeamError : a method to hook is not there
    """
    if SCHEDULER not in sys.modules:
        return False

    def after(result: Any, scheduler: Any) -> None:
        models_loaded(scheduler)

    def before(scheduler: Any) -> None:
        serving()

    for seam, hook, kind in ((MODELS_LOADED, after, HookType.AFTER), (SERVING, before, HookType.BEFORE)):
        seam.require()
        HookRegistry.register(seam.target, hook, kind)
        when_applied(lambda seam=seam, hook=hook: check(seam, hook))  # type: ignore[misc]
    return True

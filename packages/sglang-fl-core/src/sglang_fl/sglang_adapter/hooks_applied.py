"""The moment after SGLang has applied the hooks of all plugins."""

from collections.abc import Callable

from sglang.srt.plugins.hook_registry import HookRegistry

__all__ = ["when_applied"]


def when_applied(tell: Callable[[], None]) -> None:
    """Have ``tell`` called as soon as SGLang has applied its hooks, in the same process.

    SGLang applies them after all plugins have run and swallows what goes wrong there; it offers no later
    moment to a plugin. This stands for one call only.
    """
    own = vars(HookRegistry)["apply_hooks"]

    def apply_and_tell() -> None:
        HookRegistry.apply_hooks = own
        HookRegistry.apply_hooks()
        tell()

    HookRegistry.apply_hooks = apply_and_tell

"""The moment when SGLang has configured logging in this process.

It does so after it has loaded the plugins, and with ``force=True`` or a configuration of the user's: what we
log at INFO before is lost, and a configuration that does not keep existing loggers silences ours.
"""

import logging
from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType

__all__ = ["when_log_is_ready"]

TARGET = "sglang.srt.utils.common.configure_logger"


def when_log_is_ready(tell: Callable[[], None]) -> None:
    """Have ``tell`` called once, as soon as what we log is seen."""
    told: list[bool] = []

    def after(result: Any, *args: Any, **kwargs: Any) -> None:
        _enable()
        if not told:
            told.append(True)
            tell()

    HookRegistry.register(TARGET, after, HookType.AFTER)


def _enable() -> None:
    """Undo what ``disable_existing_loggers``, the default of ``dictConfig``, does to our loggers."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("sglang_fl") and isinstance(logger, logging.Logger):
            logger.disabled = False

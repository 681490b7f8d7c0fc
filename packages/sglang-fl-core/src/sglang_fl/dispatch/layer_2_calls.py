"""Whether a kernel of layer 2 is running, for the record of layer 1.

Kernels are marked only while that record is made; otherwise nothing of this is on any path.
"""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

__all__ = ["is_running", "marked"]

_running: ContextVar[bool] = ContextVar("a kernel of layer 2 is running", default=False)


def is_running() -> bool:
    """Whether the caller was called, however indirectly, by a marked kernel."""
    return _running.get()


def marked(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return the kernel with a mark that stands while it runs; its signature stays the same."""

    @functools.wraps(kernel)
    def marking(*args: Any, **kwargs: Any) -> Any:
        before = _running.set(True)
        try:
            return kernel(*args, **kwargs)
        finally:
            _running.reset(before)

    return marking

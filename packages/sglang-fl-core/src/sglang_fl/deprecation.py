"""Public names that are on their way out: each works for one more minor version, and says so once."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

__all__ = ["DEPRECATED", "Deprecated", "deprecated"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Deprecated:
    """A public name that will be removed.

    Parameters
    ----------
    name : where it stands, ``sglang_fl.vendor.flag_gems_impl``
    instead : what to use
    removed_in : the minor version of core that no longer has it, ``0.3``
    """

    name: str
    instead: str
    removed_in: str

    def __str__(self) -> str:
        return f"{self.name} will be removed in sglang-fl-core {self.removed_in}: use {self.instead}"


#: Those that this core still has; a test fails once the version is there that should not.
DEPRECATED: list[Deprecated] = []


def deprecated(instead: str, removed_in: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a public function or class as one that works for one more minor version.

    Its first call in a process warns with ``DeprecationWarning``, later ones are silent. A class stays
    itself, so that subclasses and ``isinstance`` go on; it warns when it is first instantiated.

    Parameters
    ----------
    instead : what to use
    removed_in : the minor version of core that no longer has it, ``0.3``
    """

    def mark(marked: Callable[P, R]) -> Callable[P, R]:
        entry = Deprecated(f"{marked.__module__}.{marked.__qualname__}", instead, removed_in)
        DEPRECATED.append(entry)
        if isinstance(marked, type):
            marked.__init__ = _warning_once(entry, marked.__init__)  # type: ignore[misc]
            return marked
        return _warning_once(entry, marked)

    return mark


def _warning_once(entry: Deprecated, function: Callable[P, R]) -> Callable[P, R]:
    @functools.cache
    def warn() -> None:
        warnings.warn(str(entry), DeprecationWarning, stacklevel=3)

    @functools.wraps(function)
    def forward(*args: P.args, **kwargs: P.kwargs) -> R:
        warn()
        return function(*args, **kwargs)

    return forward

"""Calls a forward of SGLang's in its place, and tells the dispatch log once it has run."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch

from sglang_fl.logs.dispatch_log import DispatchLog

__all__ = ["tell_when_run"]

Forward = Callable[..., Any]


class _Telling:
    """A forward that stands in an attribute until its first call has come back.

    Nobody watches copies of the holder: they hold the forward itself, and what is pickled the former one.
    """

    def __init__(self, holder: Any, name: str, own: Forward, tell: Callable[[], None]) -> None:
        self._holder = holder
        self._name = name
        self._own = own
        self._former = vars(holder).get(name)
        self._tell = tell
        functools.update_wrapper(self, self._own)  # SGLang's traces ask for the name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._own(*args, **kwargs)
        is_still_there = vars(self._holder).get(self._name) is self
        if is_still_there and not torch.compiler.is_compiling():
            setattr(self._holder, self._name, self._own)
            self._tell()
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> Forward:
        return copy.deepcopy(self._own, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self._former,)


def _itself(former: Forward | None) -> Forward | None:
    return former


def tell_when_run(holder: Any, name: str, own: Forward, layer_class: str, ran: str, log: DispatchLog) -> None:
    """Put a forward where it is looked for, and have its first call tell the log.

    Parameters
    ----------
    holder : the object that the forward is looked for on
    name : the attribute in which it is looked for
    own : the forward; it stands there alone after that call
    layer_class, ran : the line of the dispatch log

    Raises
    ------
    AttributeError : the object takes no attributes
    """
    tell = functools.partial(log.write, layer_class, ran)
    setattr(holder, name, _Telling(holder, name, own, tell))

"""What stands in for a forward of SGLang's to see its calls, and tells the dispatch log once it has run."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch

from sglang_fl.logs.dispatch_log import DispatchLog

__all__ = ["StandIn", "tell_when_run"]

Forward = Callable[..., Any]


class StandIn:
    """Stands in an attribute for a forward, which it calls.

    Nobody watches copies of the holder: they hold the forward itself, and what is pickled the former one.

    Parameters
    ----------
    holder : the object that the forward is looked for on
    name : the attribute in which it is looked for
    own : the forward
    """

    def __init__(self, holder: Any, name: str, own: Forward) -> None:
        self._holder = holder
        self._name = name
        self.own = own
        self._is_instead = name in vars(holder)
        self._former = vars(holder).get(name)
        # SGLang's traces ask for the name. Of attributes none: ``own`` may be one that stands in, too.
        functools.update_wrapper(self, own, updated=())

    def put(self) -> None:
        """Stand in from now on.

        Raises
        ------
        AttributeError : the holder takes no attributes
        """
        setattr(self._holder, self._name, self)

    @property
    def is_there(self) -> bool:
        """Whether nobody has put another one there."""
        return vars(self._holder).get(self._name) is self

    def leave(self) -> None:
        """Let what was there before stand there again, if nobody has put another one there."""
        if not self.is_there:
            return
        if self._is_instead:
            setattr(self._holder, self._name, self._former)
        else:
            delattr(self._holder, self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the forward."""
        return self.own(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Forward:
        return copy.deepcopy(self.own, memo)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._is_instead:
            return _itself, (self._former,)
        return getattr, (self._holder, self._name)  # the copy is empty still: its class answers


class _Telling(StandIn):
    """Stands in until the forward's first call has come back; then the forward stands there alone."""

    def __init__(self, holder: Any, name: str, own: Forward, tell: Callable[[], None]) -> None:
        super().__init__(holder, name, own)
        self._tell = tell

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.own(*args, **kwargs)
        if self.is_there and not torch.compiler.is_compiling():
            setattr(self._holder, self._name, self.own)
            self._tell()
        return result


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
    _Telling(holder, name, own, tell).put()

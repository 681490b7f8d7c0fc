"""Which of its own methods SGLang would run for a layer, also where other plugins stand in between.

The method is found by identity, not by ``__name__``: a partial has no name, and a wrapper may have any.
What is followed: ``functools.partial``, bound methods, ``__wrapped__`` (as ``functools.wraps`` sets it),
and what a function has closed over or has as a default.
"""

import functools
from collections.abc import Callable, Iterator
from enum import Enum
from types import FunctionType, MethodType
from typing import Any

__all__ = ["OwnPath", "find_method"]

#: Far more than the wrappers that plugins put around each other.
_MOST_CALLABLES = 64


class OwnPath(Enum):
    """How we stand in for SGLang's own path depends on it: where it writes, what it leaves to the model."""

    NATIVE = "forward_native"
    """Plain PyTorch."""
    CPU = "forward_cpu"
    CUDA = "forward_cuda"
    HIP = "forward_hip"
    NPU = "forward_npu"
    OTHER = ""
    """Another method of the layer, of which nothing needs to be known."""

    @classmethod
    def of(cls, method: str) -> "OwnPath":
        """Return the path of a method's name."""
        return cls(method) if method in cls._value2member_map_ else cls.OTHER

    @property
    def is_pytorch(self) -> bool:
        """Whether it is plain PyTorch, and so no better than the reference."""
        return self in (OwnPath.NATIVE, OwnPath.CPU)


def find_method(own: Callable[..., Any], owner: Any) -> str | None:
    """Return the name of the method of ``owner`` that a callable ends in, or None.

    Parameters
    ----------
    own : what SGLang would call: a bound method, or what plugins have made of one
    owner : the layer, or an object with kernels as methods

    Returns
    -------
    None where no method of the class is found behind it, or more than one: then nobody can say which runs.
    """
    names = _methods_of(type(owner))
    found = {names[id(function)] for function in _ends(own, names)}
    return found.pop() if len(found) == 1 else None


def _methods_of(cls: type) -> dict[int, str]:
    """Return the names of a class's functions by their identity, those of its bases included."""
    return {
        id(value): name
        for ancestor in reversed(cls.__mro__)
        for name, value in vars(ancestor).items()
        if isinstance(value, FunctionType)
    }


def _ends(own: Callable[..., Any], names: dict[int, str]) -> Iterator[Any]:
    """Yield the functions of the class that are reached from a callable, and look behind none of them."""
    waiting: list[Any] = [own]
    seen: list[Any] = []  # kept alive, so that no identity is given to another object meanwhile
    while waiting and len(seen) < _MOST_CALLABLES:
        current = waiting.pop()
        if any(current is other for other in seen):
            continue
        seen.append(current)
        if id(current) in names:
            yield current
        else:
            waiting += filter(callable, _behind(current))


def _behind(current: Any) -> Iterator[Any]:
    """Yield what a callable may call."""
    if isinstance(current, functools.partial):
        yield from (current.func, *current.args, *current.keywords.values())
    elif isinstance(current, MethodType):
        yield current.__func__
    elif isinstance(current, FunctionType):
        wrapped = getattr(current, "__wrapped__", None)
        if wrapped is not None:  # the one that it says it stands for
            yield wrapped
            return
        yield from (cell.cell_contents for cell in current.__closure__ or () if _is_filled(cell))
        yield from (*(current.__defaults__ or ()), *(current.__kwdefaults__ or {}).values())
    elif not isinstance(current, type):
        yield from vars(current).values() if hasattr(current, "__dict__") else ()


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises when it is read
    except ValueError:
        return False
    return True

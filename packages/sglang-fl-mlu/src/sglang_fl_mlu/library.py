"""``torch_mlu_ops``, with the signatures of its functions held against those that are written here."""

import importlib
import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any

from sglang_fl.errors import VendorError
from sglang_fl_mlu.signatures import SIGNATURES

__all__ = ["LIBRARY", "function"]

LIBRARY = "torch_mlu_ops"

logger = logging.getLogger(__name__)


def function(name: str, *options: str) -> Callable[..., Any]:
    """Return a function of ``torch_mlu_ops`` whose signature is the one it will be called by.

    A kernel asks for it when it is loaded, which is once in a process.

    Parameters
    ----------
    name : one of ``SIGNATURES``
    options : parameters with defaults that the caller passes, beside all without

    Raises
    ------
    VendorError : the library has no such function, or one with another signature
    ImportError : the library is not installed, or cannot be imported
    """
    library = importlib.import_module(LIBRARY)
    version = getattr(library, "__version__", "of unknown version")
    found: Callable[..., Any] | None = getattr(library, name, None)
    if found is None:
        raise VendorError(f"{LIBRARY} {version} has no function {name!r}")
    try:
        signature = inspect.signature(found)
    except ValueError:
        logger.warning("%s %s does not tell the signature of %s; it is called unseen", LIBRARY, version, name)
        return found
    expected = inspect.signature(SIGNATURES[name])
    difference = _difference(_list(expected), _list(signature), options)
    if difference:
        raise VendorError(
            f"{LIBRARY}.{name} {version} takes {_plain(signature)}, sglang-fl-mlu was written for "
            f"{_plain(expected)}: {difference}"
        )
    return found


def _list(signature: inspect.Signature) -> list[inspect.Parameter]:
    return list(signature.parameters.values())


def _difference(
    expected: list[inspect.Parameter], found: list[inspect.Parameter], options: Iterable[str]
) -> str | None:
    """Say in what two signatures differ that a caller would notice; None if in nothing.

    Names, order and defaults must agree as far as both go. Behind that the library may have more with
    defaults, or lack what is not passed.
    """
    for index, (wanted, given) in enumerate(zip(expected, found, strict=False)):
        if wanted.name != given.name:
            return f"parameter {index} is {given.name!r} instead of {wanted.name!r}"
        if wanted.kind != given.kind:
            return f"{wanted.name!r} is {given.kind.description}"
        if wanted.default != given.default:
            return f"{wanted.name!r} defaults to {_default(given)} instead of {_default(wanted)}"
    for wanted in expected[len(found) :]:
        if wanted.default is wanted.empty or wanted.name in options:
            return f"there is no {wanted.name!r}"
    for given in found[len(expected) :]:
        if given.default is given.empty and given.kind not in (given.VAR_POSITIONAL, given.VAR_KEYWORD):
            return f"{given.name!r} must be passed too"
    return None


def _default(parameter: inspect.Parameter) -> str:
    return "nothing" if parameter.default is parameter.empty else repr(parameter.default)


def _plain(signature: inspect.Signature) -> str:
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(inspect.Signature(bare))

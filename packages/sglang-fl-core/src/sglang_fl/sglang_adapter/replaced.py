"""Gives modules of SGLang other functions where it has no seam: it looks them up by name in each call."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from sglang_fl.errors import SettingsError

__all__ = ["Functions", "give", "give_all"]

#: By the module: the functions that take the place of those of the same names.
Functions = Mapping[str, tuple[Callable[..., Any], ...]]


def give(module: str, *functions: Callable[..., Any]) -> None:
    """Give a module functions in the place of its own of the same names.

    Raises
    ------
    SettingsError : it has no such name
    """
    loaded = importlib.import_module(module)
    for function in functions:
        if not hasattr(loaded, function.__name__):
            raise SettingsError(f"{module} has no {function.__name__}: this SGLang is none that we know")
        setattr(loaded, function.__name__, function)


def give_all(functions: Functions) -> None:
    """Give several modules functions; see ``give``."""
    for module, others in functions.items():
        give(module, *others)

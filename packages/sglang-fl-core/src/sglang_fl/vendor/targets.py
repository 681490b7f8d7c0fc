"""Targets, ``module:function``: checked as text, looked up without an import, imported only when needed."""

import importlib
import importlib.util
import re
from collections.abc import Callable
from typing import Any

from sglang_fl.errors import VendorError

__all__ = ["check_target", "is_installed", "load_target", "why_no_device"]

_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def load_target(target: str) -> Callable[..., Any]:
    """Import what a target string ``module:function`` names.

    Raises
    ------
    VendorError : the module has no such function
    ImportError : the module, or what it imports, is missing
    """
    module_name, _, attribute = target.partition(":")
    module = importlib.import_module(module_name)
    found: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(found):
        raise VendorError(f"target {target!r}: {module_name} has no function {attribute!r}")
    return found


def check_target(owner: str, target: str) -> None:
    """Raise ``VendorError``, which begins with ``owner``, unless the text has the form of a target."""
    if not _TARGET.fullmatch(target):
        raise VendorError(f"{owner}: target {target!r} is not of the form 'module:function'")


def is_installed(module: str) -> bool:
    """Whether a module could be imported; it is looked up, not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # the package it would lie in is missing
        return False
    except ValueError:  # a module without a spec is loaded under this name
        return True


def why_no_device(module: str, device_type: str) -> str | None:
    """Probe for a device that a package adds to PyTorch, such as ``torch_npu``.

    Parameters
    ----------
    module : the package, imported if it is installed
    device_type : the name under which it registers with PyTorch: ``torch.<device_type>``

    Returns
    -------
    None where PyTorch sees such a device, else the reason. Never raises.
    """
    if not is_installed(module):
        return f"{module} is not installed"
    try:
        importlib.import_module(module)
        count = getattr(importlib.import_module("torch"), device_type).device_count()
    except Exception as error:  # noqa: BLE001 - a broken driver stack raises anything; it is the reason
        return f"{module} cannot be used: {type(error).__name__}: {error}"
    return None if count else f"{module} sees no device"

"""Targets, ``module:function``: checked as text, looked up without an import, imported only when needed."""

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang_fl.errors import VendorError

__all__ = [
    "check_target",
    "is_installed",
    "load_target",
    "module_source",
    "why_no_device",
    "why_no_target",
]

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


def module_source(module: str) -> ast.Module | None:
    """Return a module's source without importing it; None where it has none in Python.

    Raises
    ------
    VendorError : there is no such module, or it cannot be read; half a sentence
    """
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    except Exception as error:  # the packages that it lies in are imported, and raise anything
        raise VendorError(f"{module} cannot be found: {type(error).__name__}: {error}") from error
    if spec is None:
        raise VendorError(f"there is no module {module}")
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise VendorError(f"{module} cannot be read: {type(error).__name__}: {error}") from error


def why_no_target(target: str) -> str | None:
    """Say what of a target ``module:function`` is missing, or None; the module is not imported.

    A module whose source does not tell, because it is compiled or takes all names of another one, is
    trusted.
    """
    module, _, name = target.partition(":")
    if module in sys.modules:
        return None if hasattr(sys.modules[module], name) else f"{module} has no {name}"
    try:
        source = module_source(module)
    except VendorError as error:
        return str(error)
    if source is None or _bound_names(source) & {name, "*", "__getattr__"}:
        return None
    return f"{module} has no {name}"


def _bound_names(source: ast.Module) -> set[str]:
    """Return all names that a module's source defines, assigns or imports."""
    names: set[str] = set()
    for node in ast.walk(source):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
    return names


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

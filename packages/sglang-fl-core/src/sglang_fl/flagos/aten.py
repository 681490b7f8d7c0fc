"""FlagGems' ATen kernels, with those that it has for the chip at hand in place of its generic ones.

FlagGems' own ``enable`` is not used: it registers everything at once, cannot switch a single op off
again, and truncates its log in each process.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flag_gems

from sglang_fl.vendor import AtenKernel

__all__ = ["kernels"]


def kernels() -> tuple[AtenKernel, ...]:
    """Return the kernels in FlagGems' order.

    Those that FlagGems' C++ extension has registered by itself are left out: nobody can switch them.
    """
    native = set(flag_gems.config.aten_patch_list)
    return tuple(
        AtenKernel(overload, function.__name__, function, _module(function))
        for overload, function, *conditions in flag_gems._FULL_CONFIG
        if overload not in native and all(condition() for condition in conditions)
    )


def _module(function: Callable[..., Any]) -> str:
    """Return where a kernel lies within FlagGems.

    The folders of vendors stand on ``sys.path`` too, so a function of theirs calls its module
    ``hopper.ops.mul``; its file knows better: ``flag_gems.runtime.backend._nvidia.hopper.ops.mul``.
    """
    package = Path(flag_gems.__file__).parent
    try:
        file = Path(inspect.getfile(inspect.unwrap(function)))
        return ".".join(file.relative_to(package.parent).with_suffix("").parts)
    except (TypeError, ValueError):  # no function of Python's, or of another package
        return str(getattr(function, "__module__", ""))

"""The record of layer 1: which replaced ATen ops were called, in FlagGems' format.

    [DEBUG] flag_gems.ops.mul.mul: GEMS MUL aten::mul.Tensor

That is the kernel's module and function, as FlagGems' logger calls them; ``GEMS`` and the function's name
in capitals, which stands for a text that every function words in its own way; and the op as PyTorch's
dispatcher called it. Each line is written by the call of a registered kernel, just before it runs, so the
last line of a server that crashed names the kernel. Kernels in vendors' folders of FlagGems, of which some
log under other names and some not at all, are recorded like all others.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from sglang_fl.dispatch import layer_2_calls
from sglang_fl.logs.shared_file import SharedFile
from sglang_fl.vendor import AtenKernel

__all__ = ["AtenRecord", "Recording"]


class Recording(Protocol):
    """What is put around the kernels of layer 1."""

    def recording(self, kernel: AtenKernel) -> Callable[..., Any]:
        """Return the kernel's function, or one that calls it."""


class AtenRecord:
    """Appends a line for each call of a kernel of layer 1 that no kernel of layer 2 has caused.

    Parameters
    ----------
    path : the file, created empty if missing; processes may share it
    once : each op once in this process, or every call

    Raises
    ------
    OSError : the file cannot be opened for appending
    """

    def __init__(self, path: Path, once: bool) -> None:
        self._file = SharedFile(path, "the record of ATen ops")
        self._once = once
        self._seen: set[str] = set()

    def recording(self, kernel: AtenKernel) -> Callable[..., Any]:
        """Return the kernel's function, which now records each call."""
        line = f"[DEBUG] {kernel.origin}: GEMS {kernel.name.upper()} {kernel}"
        function = kernel.function

        @functools.wraps(function)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if not layer_2_calls.is_running():
                self._write(line)
            return function(*args, **kwargs)

        return recorded

    def _write(self, line: str) -> None:
        if self._once and line in self._seen:
            return
        self._seen.add(line)
        self._file.append(line)

"""``SGLANG_FL_KEEP_CALLS``: what a kernel is called with is on disk before it runs.

A kernel that kills its process leaves no traceback, and its call was the one thing that could have told why.
``sglang-fl replay`` runs what is kept in a process of its own. The name of a file says how the call ended:
``0003-rms_norm.running.pt`` is one that never came back.

Not kept: calls while a graph is captured, which cannot be copied, and calls that are larger than what may be
kept at all. Calls that a graph replays do not pass through Python.
"""

import functools
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sglang_fl.dispatch.trial import device_of, is_capturing, wait_for
from sglang_fl.ops import Kernel, Op
from sglang_fl.vendor import OpImpl

__all__ = [
    "MOST",
    "RUNNING",
    "CallFolder",
    "KeptCalls",
    "bytes_of",
    "kept_files",
    "packed",
    "packed_tensor",
    "unpacked",
    "unpacked_tensor",
]

logger = logging.getLogger(__name__)

#: Bytes of all that one process keeps, of which one call may take a quarter, and how many files it makes.
MOST, MOST_FILES = 1 << 30, 4096
RUNNING = ".running.pt"
#: Elements after which memory is aligned as before.
_ALIGNED = 64


class CallFolder:
    """The files of one process, for their owner alone, and no more than there is room for.

    Parameters
    ----------
    folder : where that of the process is; made if it is missing
    most : bytes of all that is kept, of which one call may take a quarter

    Raises
    ------
    OSError : the folder cannot be made or written
    """

    def __init__(self, folder: Path, most: int = MOST) -> None:
        self._folder = folder / f"process-{os.getpid()}"
        self._most = most
        self._bytes = 0
        self._count = 0
        self._said: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, os.strerror(13), str(folder))

    def path_for(self, op: str, size: int, ending: str = ".pt") -> Path | None:
        """Return the file of a further call of so many bytes, or None where there is no room for it."""
        if self._most < 0:
            return None
        if size > self._most // 4:
            self._say_once(op, f"calls of {op} with {size >> 20} MiB are not kept: too large")
            return None
        if self._bytes + size > self._most or self._count >= MOST_FILES:
            self._say_once("", f"{self._folder}: full, no further calls are kept")
            return None
        self._bytes += size
        self._count += 1
        return self._folder / f"{self._count - 1:04d}-{op}{ending}"

    def write(self, path: Path, content: Callable[[], Mapping[str, Any]]) -> bool:
        """Write what a call gets; a file of that name is whole, or there is none.

        Where it cannot be written, because the disk is full or the folder is gone, one warning says so and no
        further calls are kept; what is served goes on.

        Returns
        -------
        bool : whether it is written
        """
        if self._most < 0:
            return False
        try:
            self._write(path, content())
        except (OSError, RuntimeError) as error:  # PyTorch raises the second, for the same reasons
            self._give_up(error)
            return False
        return True

    def rename(self, path: Path, to: Path) -> None:
        """Give a file that was written another name; where that fails, as in ``write``."""
        try:
            path.rename(to)
        except OSError as error:
            self._give_up(error)

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        self._folder.mkdir(exist_ok=True, mode=0o700)
        half = path.with_suffix(".part")
        descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                torch.save(dict(content), file)
            half.replace(path)
        except BaseException:
            half.unlink(missing_ok=True)
            raise

    def _give_up(self, error: Exception) -> None:
        if self._most >= 0:
            what = f"{type(error).__name__}: {error}"
            logger.warning("%s: no further calls are kept: %s", self._folder, what)
        self._most = -1

    def _say_once(self, key: str, text: str) -> None:
        if key not in self._said:
            self._said.add(key)
            logger.warning("%s", text)


class KeptCalls:
    """Keeps the first call of each implementation and shape of this process, or the latest one.

    Parameters
    ----------
    folder : where; made if it is missing, for its owner alone
    each : whether each call is kept, in the place of the one before of its shape
    most : bytes of all that is kept, of which one call may take a quarter

    Raises
    ------
    OSError : the folder cannot be made or written
    """

    def __init__(self, folder: Path, each: bool = False, most: int = MOST) -> None:
        self._folder = CallFolder(folder, most)
        self._each = each
        self._files: dict[tuple[object, ...], Path] = {}

    def wrap(self, op: Op, impl: OpImpl, layer: Any, kernel: Kernel) -> Kernel:
        """Return the kernel with its calls kept; its signature stays the same."""

        @functools.wraps(kernel)
        def keeping(*args: Any, **kwargs: Any) -> Any:
            given = op.signature.bind(*args, **kwargs).arguments
            path = self._keep(op, impl, type(layer).__name__, given)
            if path is None:
                return kernel(*args, **kwargs)
            try:
                result = kernel(*args, **kwargs)
                wait_for(device_of(given))
            finally:  # what it raises can be told from what ends the process
                self._folder.rename(path, path.with_name(path.name.replace(RUNNING, ".pt")))
            return result

        keeping.__signature__ = inspect.signature(kernel)  # type: ignore[attr-defined]
        return keeping

    def _keep(self, op: Op, impl: OpImpl, layer: str, given: Mapping[str, Any]) -> Path | None:
        """Write a call; return its file, or None where it is not kept."""
        key = (impl.id, op.name, *(_form(op, name, value) for name, value in given.items()))
        known = self._files.get(key)
        if (known is not None and not self._each) or is_capturing(device_of(given)):
            return None
        path = known
        if path is None:
            size = sum(bytes_of(value) for value in given.values())
            path = self._folder.path_for(op.name, size, RUNNING)
            if path is None:
                return None
            self._files[key] = path
        about = {"op": op.name, "implementation": impl.id, "target": impl.target, "layer": layer}
        about["device"] = device_of(given).type
        is_written = self._folder.write(path, lambda: {**about, "arguments": packed(given)})
        return path if is_written else None


def kept_files(folder: Path) -> list[Path]:
    """Return the files in a folder of kept calls, those that never came back first."""
    found = sorted(folder.glob("process-*/*.pt"))
    return sorted(found, key=lambda path: not path.name.endswith(RUNNING))


def packed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments as plain data; of a tensor what memory it spans, with strides and alignment."""
    return {
        name: packed_tensor(value) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def unpacked(arguments: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Return arguments as they were, on a device."""
    return {
        name: unpacked_tensor(value, device) if isinstance(value, dict) else value
        for name, value in arguments.items()
    }


def packed_tensor(tensor: Tensor) -> dict[str, Any]:
    """Return a tensor as plain data: what memory it spans, with strides and alignment."""
    span = _span(tensor)
    memory = torch.as_strided(tensor.detach(), (span,), (1,), tensor.storage_offset())
    layout = {"size": tuple(tensor.shape), "stride": tensor.stride()}
    return {"memory": memory.cpu().clone(), "offset": tensor.storage_offset() % _ALIGNED, **layout}


def unpacked_tensor(packed: Mapping[str, Any], device: str) -> Tensor:
    """Return a tensor as it was, on a device."""
    memory, offset = packed["memory"], packed["offset"]
    whole = torch.empty(offset + len(memory), dtype=memory.dtype, device=device)
    whole[offset:] = memory.to(device)
    return torch.as_strided(whole, packed["size"], packed["stride"], offset)


def _span(tensor: Tensor) -> int:
    """Return how many elements of memory lie between a tensor's first and last element, both included."""
    if not tensor.numel():
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def bytes_of(value: Any) -> int:
    """Return how many bytes of memory are kept of an argument."""
    return _span(value) * value.element_size() if isinstance(value, Tensor) else 0


def _form(op: Op, name: str, value: Any) -> object:
    """Return what distinguishes a call from others."""
    if not isinstance(value, Tensor):
        return name, repr(value)
    # Lists of slots grow with each step: those of about one length count as one.
    size = tuple(n.bit_length() for n in value.shape) if op.bounds else tuple(value.shape)
    return name, value.dtype, size, () if op.bounds else value.stride()

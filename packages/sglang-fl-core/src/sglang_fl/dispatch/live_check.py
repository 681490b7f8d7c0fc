"""``SGLANG_FL_VERIFY``: a server that holds a sample of its own calls against float64 while it serves.

What a check finds changes nothing: the kernel's results are served. Calls that are replayed from a CUDA graph
do not pass through Python and are not seen; those before the capture, and all that run without a graph, are.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sglang_fl.dispatch.op_check import OpCheck, Violation
from sglang_fl.ops import OPS, Kernel, Op

__all__ = ["LiveCheck"]

logger = logging.getLogger(__name__)


class LiveCheck:
    """Checks sampled calls of some ops, and says once for each op and shape, or layer, what is wrong.

    Parameters
    ----------
    ops : their names; whoever checks attention may be among them, and uses ``check``
    every : one call in so many of each layer
    device_type : PyTorch's string
    """

    def __init__(self, ops: Iterable[str], every: int, device_type: str) -> None:
        self._ops = frozenset(ops)
        self._device_type = device_type
        self.check = OpCheck(self._report, every, skip=self._is_capturing, look=self._look)
        self._names: dict[int, str] = {}
        self._said: set[tuple[object, ...]] = set()
        self._has_tripped = False
        self._every = every

    def __str__(self) -> str:
        """Say what is checked."""
        ops = ", ".join(sorted(self._ops))
        return f"checking one call in {self._every} of {ops}; calls that a CUDA graph replays cannot be seen"

    def learn_names(self, model: torch.nn.Module) -> None:
        """Remember the names of a model's layers."""
        self._names.update((id(layer), name) for name, layer in model.named_modules())

    def wrap(self, op: Op, layer: Any, kernel: Kernel) -> Kernel:
        """Return the kernel, with the check around it if its op is one of those."""
        if op.name not in self._ops:
            return kernel
        return self.check.checking(op, lambda: self.name_of(layer), kernel)

    def name_of(self, layer: Any) -> str:
        """Return the name of a layer in its model, or that of its class."""
        return self._names.get(id(layer), type(layer).__name__)

    def name_by_backend(self, layer: Any, backend: str) -> str:
        """Return the same of a layer that an attention backend has run."""
        return f"{self.name_of(layer)} by the attention backend {backend}"

    def _is_capturing(self) -> bool:
        ask = getattr(getattr(torch, self._device_type, None), "is_current_stream_capturing", None)
        return bool(ask and ask())

    def _report(self, found: Violation) -> None:
        # Lists of slots grow by one with each step.
        has_lists = bool(OPS[found.op].bounds)
        key = (found.op, found.layer) if has_lists else (found.op, *sorted(found.shapes.items()))
        if key in self._said:
            return
        self._said.add(key)
        shapes = ", ".join(f"{name} {shape}" for name, shape in found.shapes.items())
        logger.warning("%s; shapes: %s", found, shapes)

    def _look(self, op: Op, layer: str, given: Mapping[str, Any], results: Any) -> None:
        """Tell of the first result that is not finite."""
        if self._has_tripped or all(_is_finite(t) for t in _tensors(results)):
            return
        self._has_tripped = True
        cause = (
            "although its arguments are" if all(map(_is_finite, _tensors(given))) else "nor are its arguments"
        )
        logger.warning("%s in %s returned numbers that are not finite, %s", op, layer, cause)


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from _tensors(tuple(values.values()))
    elif isinstance(values, tuple):
        yield from (value for value in values if isinstance(value, Tensor))

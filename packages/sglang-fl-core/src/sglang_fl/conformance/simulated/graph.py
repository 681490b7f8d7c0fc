"""Graphs of the simulated chip: the calls made while one is captured are made again at each replay.

What a real capture refuses is refused: reading from the device, results whose shape only the device knows,
and copies from the host's memory. Unlike there, a captured call also runs at once.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode

__all__ = ["Capture", "Graph", "capturing"]

#: They only take memory; what was in it stays, as in the memory of a real graph.
_ALLOCATIONS = ("aten::empty", "aten::new_empty")


class Graph:
    """``torch.<device_type>.<DEVICE_TYPE>Graph``: what was captured."""

    def __init__(self, keep_graph: bool = False) -> None:
        self._calls: list[
            tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[Tensor | None]]
        ] = []

    def add(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any], outputs: Any
    ) -> None:
        """Add a call that was just made."""
        taken = {_memory(tensor) for tensor in _tensors((arguments, named))}
        own = [tensor if _memory(tensor) not in taken else None for tensor in _tensors(outputs)]
        self._calls.append((function, arguments, named, own))

    def replay(self) -> None:
        """Make the calls again, on the memory that they had."""
        with torch.no_grad():
            for function, arguments, named, own in self._calls:
                for tensor, fresh in zip(own, _tensors(function(*arguments, **named)), strict=True):
                    if tensor is not None:
                        tensor.copy_(fresh)

    def reset(self) -> None:
        """Forget what was captured."""
        self._calls.clear()


class Capture(TorchDispatchMode):
    """``torch.<device_type>.graph``: puts the calls that are made in its context into a graph."""

    def __init__(
        self, graph: Graph, pool: object = None, stream: object = None, capture_error_mode: str = "global"
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # PyTorch's
        self._graph = graph

    def __torch_dispatch__(
        self, op: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        return self.call(op, arguments, named or {}, _why_not(op, arguments))

    def call(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        named: dict[str, Any],
        refusal: str | None = None,
    ) -> Any:
        """Make a call, and put it into the graph if it is the chip's."""
        chip = torch._C._get_privateuse1_backend_name()
        given = list(_tensors((arguments, named)))
        with _disable_current_modes():
            outputs = function(*arguments, **named)
        # A number may come from the host: it becomes part of the call.
        places = {tensor.device.type for tensor in given if tensor.dim() or not tensor.is_cpu}
        places |= {tensor.device.type for tensor in _tensors(outputs)}
        if chip not in places:
            return outputs
        if refusal is None and len(places) > 1:
            refusal = "copies between the host and the chip"
        if refusal is not None:
            raise RuntimeError(f"simulated {chip}: {function} {refusal}, which a graph cannot hold")
        if not str(getattr(function, "name", str)()).startswith(_ALLOCATIONS):
            self._graph.add(function, arguments, named, outputs)
        return outputs


def _why_not(op: Any, arguments: tuple[Any, ...]) -> str | None:
    if torch.Tag.data_dependent_output in op.tags:
        return "reads from the device"
    if torch.Tag.dynamic_output_shape in op.tags and not _indexes_by_number(op, arguments):
        return "has a result whose shape only the device knows"
    return None


def _indexes_by_number(op: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether this is indexing without a mask: then its result has the shape of the indices."""
    indices = list(_tensors(arguments[1:]))
    return op is torch.ops.aten.index.Tensor and not any(
        x.dtype in (torch.bool, torch.uint8) for x in indices
    )


def capturing() -> Capture | None:
    """Return what captures now, if anything does."""
    mode = _get_current_dispatch_mode()
    return mode if isinstance(mode, Capture) else None


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

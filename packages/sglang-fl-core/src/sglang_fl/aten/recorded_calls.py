"""The calls that a model makes of ATen ops, kept on disk while PyTorch's own kernels run them.

A mode of PyTorch's dispatcher sees each call just above the place where layer 1 replaces a kernel, those that
PyTorch's kernels make in turn as well. Not kept: calls that a kernel of layer 2 makes, calls that a graph
replays, and those for which there is no room. What ``torch.compile`` would have compiled runs as written.
"""

import numbers
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode

from sglang_fl.aten.call_check import MOST_CALLS, overload_of
from sglang_fl.dispatch import layer_2_calls
from sglang_fl.dispatch.kept_calls import CallFolder, bytes_of, packed_tensor, unpacked_tensor
from sglang_fl.dispatch.trial import is_capturing
from sglang_fl.sglang_adapter.telling import StandIn
from sglang_fl.vendor import AtenOp

__all__ = ["CallMode", "load_call", "watch_batches"]

#: An op as PyTorch's dispatcher hands it to a mode.
Overload = torch._ops.OpOverload
#: Constants of PyTorch's that its own reader of files refuses.
_CONSTANTS = (torch.layout, torch.memory_format)


class CallMode(TorchDispatchMode):  # type: ignore[no-untyped-call] # PyTorch's base declares no types
    """Keeps the first call of each op for each combination of shapes, dtypes, strides and other arguments.

    Parameters
    ----------
    ops : those whose calls are kept
    device_type : PyTorch's string for the device whose tensors they are for
    folder : where
    """

    def __init__(self, ops: Iterable[AtenOp], device_type: str, folder: CallFolder) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # likewise
        self._kinds: dict[str, set[object]] = {op.exact: set() for op in ops}
        self._device_type = device_type
        self._folder = folder
        self._key: str = torch._C._dispatch_key_for_device(device_type)
        key: Any = torch._C._parse_dispatch_key(self._key)
        self._keys: Any = torch._C.DispatchKeySet(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        leaves = tree.tree_leaves((args, given))
        if not isinstance(func, Overload) or not self._is_for_device(leaves):
            return func(*args, **given)
        is_plain = not types and all(map(_is_plain, leaves))
        if is_plain:
            self._keep(func, args, given)
        if not is_plain or not self._can_go_on(func, args):
            return func(*args, **given)
        with self:  # what PyTorch's kernel calls in turn can be replaced as well
            return func.redispatch(self._keys, *args, **given)

    def _is_for_device(self, leaves: list[Any]) -> bool:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        devices = [tensor.device for tensor in tensors] or [x for x in leaves if isinstance(x, torch.device)]
        return any(device.type == self._device_type for device in devices)

    def _can_go_on(self, func: Overload, args: tuple[Any, ...]) -> bool:
        """Whether the device's kernel can be called past the rest of the dispatcher."""
        name = _name(func).removesuffix(".default")
        if not torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, self._key):
            return False
        # A number in the place of a tensor is taken by the dispatcher alone.
        declared = func._schema.arguments
        return not any(
            isinstance(value, numbers.Number) and str(argument.type) == "Tensor"
            for argument, value in zip(declared, args, strict=False)
        )

    def _keep(self, func: Overload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        name = _name(func)
        kinds = self._kinds.get(name)
        if kinds is None or layer_2_calls.is_running() or len(kinds) >= MOST_CALLS:
            return
        named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
        arguments = {**named, **kwargs}
        leaves = tree.tree_leaves(arguments)
        kind = tuple(_form(leaf) for leaf in leaves)
        if kind in kinds or is_capturing(torch.device(self._device_type)):
            return
        kinds.add(kind)
        path = self._folder.path_for(name.removeprefix("aten::"), sum(map(bytes_of, leaves)))
        if path is not None:
            content = {"op": name, "layer": "", "device": self._device_type}
            self._folder.write(path, lambda: {**content, "arguments": tree.tree_map(self._packed, arguments)})

    def _packed(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return {"device": value.device.type, **packed_tensor(value)}
        if isinstance(value, torch.device):  # of another rank it has another number
            return torch.device(value.type) if value.type == self._device_type else value
        return {"constant": str(value)} if isinstance(value, _CONSTANTS) else value


def load_call(path: Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a kept call as PyTorch's dispatcher passes them on: ``(args, kwargs)``.

    Raises
    ------
    OSError, RuntimeError, KeyError : the file is no kept call
    """
    kept = torch.load(path, weights_only=True)
    arguments = tree.tree_map(_unpacked, kept["arguments"], is_leaf=_is_packed)
    by_name = {a.name for a in overload_of(kept["op"])._schema.arguments if a.kwarg_only}
    args = tuple(value for name, value in arguments.items() if name not in by_name)
    return args, {name: value for name, value in arguments.items() if name in by_name}


def watch_batches(mode: CallMode) -> Callable[[Any], None]:
    """Return what lets a mode see each batch of a scheduler of SGLang's."""
    return lambda scheduler: _Watching(scheduler, mode).put()


class _Watching(StandIn):
    """Stands in for the scheduler's ``run_batch``."""

    def __init__(self, scheduler: Any, mode: CallMode) -> None:
        super().__init__(scheduler, "run_batch", scheduler.run_batch)
        self._mode = mode

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._mode:
            return self.own(*args, **kwargs)


def _name(func: Overload) -> str:
    """Return the name that means an overload alone: ``aten::mm.default``."""
    return f"{func._schema.name}.{func._schema.overload_name or 'default'}"


def _form(value: Any) -> object:
    """Return what distinguishes an argument from others."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.stride(), value.device.type
    return repr(value)


def _is_plain(value: Any) -> bool:
    """Whether an argument can be written as it is: no sparse, quantised, conjugated or negated tensor."""
    if not isinstance(value, Tensor):
        return not isinstance(value, torch.Generator)
    is_strided = value.layout is torch.strided and not value.is_quantized
    return is_strided and not value.is_conj() and not value.is_neg()


def _is_packed(value: Any) -> bool:
    return isinstance(value, dict) and ("memory" in value or "constant" in value)


def _unpacked(value: Any) -> Any:
    if not _is_packed(value):
        return value
    if "constant" in value:
        return getattr(torch, value["constant"].removeprefix("torch."))
    return unpacked_tensor(value, value["device"])

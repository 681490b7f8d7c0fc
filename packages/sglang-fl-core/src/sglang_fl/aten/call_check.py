"""Hold calls of a replaced ATen op, kept while a model ran, against PyTorch's own kernel."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree

from sglang_fl.dispatch.faults import is_out_of_memory
from sglang_fl.errors import few
from sglang_fl.ops.compare import error_in_units
from sglang_fl.vendor import AtenKernel

__all__ = ["MOST_CALLS", "AtenFault", "CallBook", "FarRowsError", "compare", "overload_of", "why_not_judged"]

#: Calls of one op that are kept, of different shapes and dtypes, and bytes of all.
MOST_CALLS, MOST_BYTES = 24, 1 << 28
#: Units of the dtype's rounding, over PyTorch's own error, that a kernel may be from float64: two kernels
#: that sum in another order are some units apart.
ALLOWED = 16.0
#: How many times as large as a tensor its storage may be to be copied whole.
MOST_TIMES = 8
#: Ops whose integer results are places in their first argument. Of equal elements either may be named.
PLACES = ("argmax", "argmin", "max", "min", "sort", "topk")
#: Added to integer arguments for a second look: float32 counts no further without gaps.
BEYOND_FLOAT32 = 1 << 24
#: From there on the index of an element does not fit in 32 bits.
FAR = 1 << 31


@dataclass(frozen=True)
class AtenFault:
    """One kept call in which a kernel is wrong.

    Parameters
    ----------
    overload : the op as ATen calls it
    what : half a sentence
    error, reference_error : units of the dtype's rounding from float64, of the kernel and of PyTorch's own
    dtype, shapes : of the tensor arguments
    call : ``(args, kwargs)`` before the call
    where : the layer of the model that made the call
    """

    overload: str
    what: str
    error: float
    reference_error: float
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    call: tuple[Any, Any]
    where: str = ""

    def __str__(self) -> str:
        return (
            f"aten::{self.overload}: {self.what}: {self.error:.3g} units of {self.dtype} from float64 "
            f"(PyTorch's own {self.reference_error:.3g})"
        )


class FarRowsError(MemoryError):
    """A call was compared, but there is no memory to make it again with rows past element 2^31."""


class CallBook:
    """Keeps copies of the arguments of calls, one for each combination of shapes and dtypes.

    Parameters
    ----------
    where : asked in each call for the layer of the model that makes it
    """

    def __init__(self, where: Callable[[], str] = lambda: "") -> None:
        self._where = where
        self._calls: dict[str, dict[object, tuple[str, tuple[Any, Any]]]] = {}
        self._too_large: set[str] = set()
        self._too_many: set[str] = set()
        self._not_compared: dict[str, list[str]] = {}
        self._bytes = 0

    @property
    def called(self) -> tuple[str, ...]:
        """The ops of which a call was seen, as ATen calls them."""
        return tuple(name for name, calls in self._calls.items() if calls or name in self._too_large)

    @property
    def unjudged(self) -> dict[str, str]:
        """What calls were not kept, or could not be repeated, and why: all the reasons of an op."""
        room = f"what was left of the {MOST_BYTES >> 20} MiB in which all calls are kept"
        kinds = f"it was called with more than {MOST_CALLS} combinations of shapes and dtypes"
        found: dict[str, list[str]] = {}
        for name in sorted(self._too_large | self._too_many | self._not_compared.keys()):
            what = f"part of aten::{name}" if self._calls[name] else f"aten::{name}"
            large = [f"too large: more than {room}"] if name in self._too_large else []
            many = [kinds] if name in self._too_many else []
            found[what] = [*large, *many, *self._not_compared.get(name, ())]
        return {what: "; ".join(few(reasons)) for what, reasons in found.items()}

    def keeping(self, kernel: AtenKernel) -> AtenKernel:
        """Return the kernel, which now keeps its arguments."""
        self._calls.setdefault(kernel.overload, {})

        def kept(*args: Any, **kwargs: Any) -> Any:
            self._keep(kernel.overload, args, kwargs)
            return kernel.function(*args, **kwargs)

        return replace(kernel, function=kept, module=kernel.module or kernel.function.__module__)

    def _keep(self, overload: str, args: Any, kwargs: Any) -> None:
        calls = self._calls[overload]
        tensors = _tensors((args, kwargs))
        kind = tuple((t.shape, t.dtype, t.stride()) for t in tensors)
        size = sum(t.nbytes for t in tensors)
        if kind in calls:
            return
        if len(calls) >= MOST_CALLS:
            self._too_many.add(overload)
            return
        if self._bytes + size > MOST_BYTES:
            self._too_large.add(overload)
            return
        self._bytes += size
        calls[kind] = "", ((), {})  # first, because copying may call the very op
        calls[kind] = self._where(), _copied((args, kwargs))

    def faults(self, kernel: AtenKernel) -> Iterator[AtenFault]:
        """Run the kept calls of an op by the kernel and by PyTorch, which must have the op back by now."""
        for where, call in self._calls.get(kernel.overload, {}).values():
            try:
                for fault in compare(kernel, call):
                    yield replace(fault, where=where)
            except FarRowsError:
                self._leave_out(kernel, "not tried with rows past 2^31: no memory")
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._leave_out(kernel, f"too large: no memory to repeat a call of shapes {_shapes(call)}")

    def _leave_out(self, kernel: AtenKernel, reason: str) -> None:
        reasons = self._not_compared.setdefault(kernel.overload, [])
        if reason not in reasons:
            reasons.append(reason)


def compare(kernel: AtenKernel, call: tuple[Any, Any]) -> Iterator[AtenFault]:
    """Run a call by a kernel and by PyTorch, and once more at the edge of the numbers in it.

    That is with integers past 2^24, or, of an op that is given numbers of rows in int32, with rows past
    element 2^31 of their memory.

    Parameters
    ----------
    kernel : it must not be registered
    call : ``(args, kwargs)``; not written

    Raises
    ------
    RuntimeError, MemoryError : there is no memory to repeat the call
    FarRowsError : the call was repeated, and there is no memory for rows past element 2^31
    """
    own = overload_of(kernel.overload)
    if _differs_by_itself(own):
        return
    yield from _compare(kernel, own, call, "")
    # Elsewhere an integer may be an index or a size.
    beyond = _beyond_float32(call) if torch.Tag.pointwise in own.tags else None
    if beyond is not None:
        yield from _compare(kernel, own, beyond, " (integers from 2^24 on)")
    by_last_row = _by_last_row(call) if torch.Tag.pointwise not in own.tags else None
    if by_last_row is None:
        return
    try:
        yield from _compare(kernel, own, by_last_row, " (rows from element 2^31 on)", is_far=True)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise FarRowsError("no memory for rows past element 2^31") from error


def why_not_judged(overload: str, call: tuple[Any, Any]) -> str:
    """Say why ``compare`` finds nothing in a call, whatever the kernel does; empty if it can.

    Parameters
    ----------
    overload : as ATen calls it
    call : ``(args, kwargs)``; not written

    Raises
    ------
    RuntimeError, MemoryError : there is no memory to repeat the call
    """
    own = overload_of(overload)
    if _differs_by_itself(own):
        return "random numbers, or memory as it is: any two calls differ"
    return "" if _by_pytorch(own, call) else "PyTorch does not run it in float64"


def _differs_by_itself(own: torch._ops.OpOverload) -> bool:
    """Whether any two calls differ: random numbers, and memory as it is."""
    return torch.Tag.nondeterministic_seeded in own.tags or "empty" in own._schema.name


def overload_of(name: str) -> torch._ops.OpOverload:
    """Return an op by its name, in either spelling."""
    packet, _, overload = name.removeprefix("aten::").partition(".")
    found: torch._ops.OpOverload = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return found


def _copied(call: tuple[Any, Any]) -> tuple[Any, Any]:
    copied: tuple[Any, Any] = tree.tree_map(lambda x: _copy(x) if isinstance(x, Tensor) else x, call)
    return copied


def _copy(tensor: Tensor) -> Tensor:
    """Return a copy with the same strides: a kernel may be wrong on strided tensors alone."""
    whole = tensor.untyped_storage().nbytes() // max(tensor.element_size(), 1)
    if whole > MOST_TIMES * max(tensor.numel(), 1):
        return tensor.clone()  # a few rows of a pool
    flat = tensor.as_strided((whole,), (1,), 0).clone()
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _compare(
    kernel: AtenKernel, own: torch._ops.OpOverload, call: tuple[Any, Any], note: str, is_far: bool = False
) -> Iterator[AtenFault]:
    """Run a call by both, and once more if it is not one with far rows.

    Raises
    ------
    RuntimeError, MemoryError : there is no memory for it
    """
    found = _by_pytorch(own, call)
    if found is None:
        return
    (wanted, theirs), (truth, exact) = found
    first = _with_far_rows(call) if is_far else _copied(call)
    got = _run(kernel, first)
    if isinstance(got, Exception):
        yield _fault(kernel, f"it raised {type(got).__name__}: {got}{note}", call)
        return
    # What a call wrote to its arguments counts as well.
    mine, his, real = (tree.tree_leaves(x) for x in ((got, first), (wanted, theirs), (truth, exact)))
    if len(mine) != len(his):
        yield _fault(kernel, f"{len(mine)} results and arguments instead of {len(his)}{note}", call)
        return
    for result, other, true in zip(mine, his, real, strict=True):
        if isinstance(result, Tensor):
            result, other = _named_elements(own, call, result, other) or (result, other)
            yield from _differs(kernel, result, other, true, call, note)
    if is_far:
        return
    second = _copied(call)
    again = _run(kernel, second)
    if isinstance(again, Exception):
        yield _fault(kernel, f"a second call raised {type(again).__name__}: {again}{note}", call)
        return
    third = _copied(call)
    repeated = own(*third[0], **third[1])
    is_steady = all(map(_equal, his, tree.tree_leaves((repeated, third))))
    if is_steady and not all(map(_equal, mine, tree.tree_leaves((again, second)))):
        yield _fault(kernel, f"two calls with the same arguments differ{note}", call)


def _by_pytorch(
    own: torch._ops.OpOverload, call: tuple[Any, Any]
) -> tuple[tuple[Any, Any], tuple[Any, Any]] | None:
    """Return results and arguments after the call, of PyTorch as it is and of PyTorch in float64.

    None where it cannot run this variant, and so says nothing.

    Raises
    ------
    RuntimeError, MemoryError : there is no memory for it
    """
    theirs, exact = _copied(call), _as_float64(_copied(call))
    try:
        return (own(*theirs[0], **theirs[1]), theirs), (own(*exact[0], **exact[1]), exact)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return None


def _run(kernel: AtenKernel, call: tuple[Any, Any]) -> Any:
    """Return what a kernel returns, or the exception that it raises.

    Raises
    ------
    RuntimeError, MemoryError : there is no memory for it
    """
    try:
        return kernel.function(*call[0], **call[1])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return error  # it is the finding


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return True
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def _named_elements(
    own: torch._ops.OpOverload, call: tuple[Any, Any], got: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Return the elements at the places that both results name, as bits; None if they name no places."""
    x, *_ = call[0]
    if own.overloadpacket.__name__ not in PLACES or got.dtype != torch.int64 or got.shape != wanted.shape:
        return None
    names = [argument.name for argument in own._schema.arguments]
    if "dim" not in names:
        return None
    given = dict(zip(names, call[0], strict=False)) | call[1]
    dim = given.get("dim", own._schema.arguments[names.index("dim")].default_value)
    if dim is None:
        x, dim, got, wanted = x.flatten(), 0, got.reshape(1), wanted.reshape(1)
    elif got.dim() < x.dim():
        got, wanted = got.unsqueeze(dim), wanted.unsqueeze(dim)
    size = x.shape[dim]
    if not size or not bool(((got >= 0) & (got < size)).all()):
        return None
    return _as_bits(torch.gather(x, dim, got)), _as_bits(torch.gather(x, dim, wanted))


def _as_bits(x: Tensor) -> Tensor:
    """Return bits that are equal where elements are: one NaN is as good as another, and so is one zero."""
    if not x.is_floating_point():
        return x
    same_size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return torch.where(x.isnan(), torch.nan, x + 0.0).contiguous().view(same_size[x.element_size()])


def _differs(
    kernel: AtenKernel, got: Tensor, own: Tensor, true: Tensor, call: tuple[Any, Any], note: str
) -> Iterator[AtenFault]:
    if (got.shape, got.dtype) != (own.shape, own.dtype):
        yield _fault(
            kernel, f"{tuple(got.shape)} {got.dtype} instead of {tuple(own.shape)} {own.dtype}", call
        )
    elif not got.is_floating_point():
        if not torch.equal(got, own):
            count = int((got != own).sum())
            yield _fault(kernel, f"{count} of {got.numel()} elements differ{note}", call)
    else:
        error, own_error = (error_in_units(x, true.double(), _size(true)) for x in (got, own))
        if error > own_error + ALLOWED:
            yield _fault(kernel, f"inexact{note}", call, error, own_error)


def _size(true: Tensor) -> Tensor:
    """Return the magnitude that errors are counted in: of a result that cancelled, that of its neighbours."""
    finite = true.double().abs().nan_to_num(0.0, 0.0, 0.0)
    scale = finite.mean() if finite.numel() else finite.sum()
    return finite.clamp_min(float(scale))


def _fault(
    kernel: AtenKernel, what: str, call: tuple[Any, Any], error: float = torch.inf, own: float = 0.0
) -> AtenFault:
    tensors = _tensors(call)
    dtype = str(tensors[0].dtype).removeprefix("torch.") if tensors else "none"
    return AtenFault(kernel.overload, what, error, own, dtype, _shapes(call), call)


def _tensors(call: Any) -> list[Tensor]:
    return [leaf for leaf in tree.tree_leaves(call) if isinstance(leaf, Tensor)]


def _shapes(call: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(tensor.shape) for tensor in _tensors(call))


def _as_float64(call: tuple[Any, Any]) -> tuple[Any, Any]:
    def exact(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    changed: tuple[Any, Any] = tree.tree_map(exact, call)
    return changed


def _by_last_row(call: tuple[Any, Any]) -> tuple[Any, Any] | None:
    """Return the call with the last row of its first argument in the place of the largest number in int32.

    None where no tensor of int32 can be numbers of rows, or the rows are too few to be far apart: a stride
    beyond 32 bits is counted in 64 by every kernel.
    """
    args, kwargs = call
    table = args[0] if args else None
    if not isinstance(table, Tensor) or not table.is_floating_point() or not table.dim() or len(table) < 3:
        return None
    numbers = [x for x in _tensors((args[1:], kwargs)) if x.dtype == torch.int32 and x.numel()]
    if not numbers or any(int(x.min()) < 0 or int(x.max()) >= len(table) for x in numbers):
        return None

    def moved(value: Any) -> Any:
        is_numbers = any(value is x for x in numbers)
        return torch.where(value == value.max(), len(table) - 1, value) if is_numbers else value

    others, options = tree.tree_map(moved, (args[1:], kwargs))
    return (table, *others), options


def _with_far_rows(call: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return a copy of the call in which the last row of the first argument begins beyond element 2^31.

    Where 32 bits point to instead lies memory of the same allocation, so that a wrong address harms nothing.
    """
    (table, *others), options = _copied(call)
    row = table[0]
    stride = max(FAR // (len(table) - 1) + 1, row.numel())
    size = FAR + (len(table) - 1) * stride + row.numel()
    memory = torch.empty(size, dtype=table.dtype, device=table.device)
    steps = (stride, *torch.empty(row.shape, device="meta").stride())
    far = memory.as_strided(table.shape, steps, FAR)
    far.copy_(table)
    return (far, *others), options


def _beyond_float32(call: tuple[Any, Any]) -> tuple[Any, Any] | None:
    """Return the call with its integers moved past 2^24, or None if it has no integer tensor."""
    wide = (torch.int32, torch.int64)
    if not any(isinstance(leaf, Tensor) and leaf.dtype in wide for leaf in tree.tree_leaves(call)):
        return None

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype in wide:
            return value + BEYOND_FLOAT32
        return value + BEYOND_FLOAT32 if type(value) is int else value

    args, kwargs = call
    return tree.tree_map(moved, args), kwargs

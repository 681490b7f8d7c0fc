"""What an op must state about itself: reference, what may be written, sample inputs, bound."""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError, VendorError
from sglang_fl.ops.shared.overlap import shares_memory

__all__ = [
    "Arguments",
    "Bound",
    "Case",
    "Kernel",
    "Op",
    "Outputs",
    "compute_dtype",
    "lacking",
    "with_options",
]

Outputs = Tensor | tuple[Tensor, ...]
Kernel = Callable[..., Outputs]
Arguments = dict[str, Any]


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype that a reference computes in: float32, or float64 if an input has it."""
    is_double = any(tensor.dtype is torch.float64 for tensor in tensors)
    return torch.float64 if is_double else torch.float32


def lacking(kernel: Kernel, options: Iterable[str]) -> list[str]:
    """Return which of these options of a contract the kernel does not take.

    The keyword-only parameters of a contract are its options. A kernel that leaves one out of its
    signature says by that that it cannot do it.
    """
    taken = inspect.signature(kernel).parameters
    return [name for name in options if name not in taken]


def with_options(kernel: Kernel, options: Mapping[str, Any]) -> Kernel:
    """Return the kernel with these options of its contract set.

    Raises
    ------
    UnsupportedError : it does not take one of them
    """
    missing = lacking(kernel, options)
    if missing:
        raise UnsupportedError(f"it does not take {', '.join(missing)}")
    return functools.partial(kernel, **options) if options else kernel


@dataclass(frozen=True)
class Bound:
    """How far an implementation may be from float64 arithmetic.

    The error of an element is counted in units of ``eps * magnitude``: ``eps`` of the output's
    dtype, and as magnitude the size of the terms that the element is made of. Rounding a result
    to nearest costs half a unit.

    Parameters
    ----------
    half : for dtypes of 16 and 8 bit
    single : for float32
    """

    half: float
    single: float

    def of(self, dtype: torch.dtype) -> float:
        """Return the bound for outputs of ``dtype``."""
        return self.half if dtype.itemsize < torch.float32.itemsize else self.single


@dataclass(frozen=True)
class Case:
    """One sample input of an op.

    Parameters
    ----------
    name : says what is special about it, for test ids
    make : called with a dtype and a seeded CPU generator; returns the arguments by name, on the CPU
    bound : where its options round more often than the op does otherwise
    """

    name: str
    make: Callable[[torch.dtype, torch.Generator], Arguments]
    bound: Bound | None = None

    def arguments(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Arguments:
        """Make the arguments with floating dtype ``dtype`` and move them to ``device``.

        Strides are kept: a case that wants a non-contiguous tensor gets one on the device too. So is memory
        that two arguments share.
        """
        made = self.make(dtype, torch.Generator().manual_seed(seed))
        moved: dict[int, Tensor] = {}
        return {name: _on_device(value, device, moved) for name, value in made.items()}

    def __str__(self) -> str:
        return self.name


def _on_device(value: Any, device: str, moved: dict[int, Tensor]) -> Any:
    """Return a value on a device; ``moved`` is filled with the storages that are there, by their address."""
    if not isinstance(value, Tensor) or device == "cpu":
        return value
    # .to() would make the copy dense; a view keeps its strides only with its whole storage.
    storage = value.untyped_storage()
    if storage.data_ptr() not in moved:
        whole = value.as_strided((storage.nbytes() // value.element_size(),), (1,), 0)
        moved[storage.data_ptr()] = whole.to(device)
    there = moved[storage.data_ptr()].view(value.dtype)
    return there.as_strided(value.shape, value.stride(), value.storage_offset())


@dataclass(frozen=True)
class Op:
    """A computation with a name and a contract.

    The reference is the contract: its name is the op's name, its signature is what every kernel
    has, its docstring gives shapes and dtypes. Its keyword-only parameters are options, which a kernel
    may leave out of its signature: then it does not run calls that need them.

    Parameters
    ----------
    reference : plain PyTorch; computes in float32, or in float64 if given float64; writes nothing but
        what it ``updates``
    cases : the sample inputs that every implementation must pass
    bound : see ``Bound``
    rows : the arguments that hold one row for each token, and the axis along which the rows lie. They may
        lie at any stride, overlap, or be the rows of another such argument; and what is in one row, NaN too,
        never reaches the results of another
    sequences : the argument that holds where each sequence of rows begins and the last one ends, where the
        rows of one sequence depend on each other
    of_sequences : further arguments with one element for each sequence
    bounds : further arguments with one bound more than there are rows, or sequences: what belongs to each
        lies between two of them, in an argument that is the same for all
    writes : arguments that a kernel may write (and return) instead of allocating its results; each only where
        its memory is its own: no two of its elements, and no element of another argument, share it
    writes_if_given : if set, those arguments are written only when this optional one is given
    writes_rows : for a written argument of which only some rows are touched, the argument that holds
        their indices; a negative index is no row
    reads_rows : for a pool of which only some rows are read, the argument that holds their indices, and the
        one that holds where those of each sequence begin and the last ones end. They may lie at any stride;
        what is in one, NaN too, reaches the results of its sequence alone, and what is in any other none
    picks_rows : for weights of which a call picks some by an index along their first axis, as a router picks
        experts, the argument that holds these indices; one below zero picks none
    updates : arguments that every implementation, the reference too, writes in place as results, where they
        are given
    operands : an argument in whose dtype kernels multiply matrices, where results may have a finer one:
        errors of these are counted in units of this argument's dtype
    magnitude : ``magnitude(truth, **arguments)``, all in float64, the arguments as they were before the
        call: the size of the terms each element of the results is made of; None where that is the element
        itself
    comparable : ``comparable(outputs, arguments)`` brings results that may come in several orders into
        one that can be compared element by element
    as_good : ``as_good(results, truth, arguments)``: whether results that differ from the truth are as right,
        because the contract leaves a choice open that ``comparable`` cannot take away; both as ``results``
        gives them
    why_invalid : ``why_invalid(outputs, arguments)`` says what is wrong with results whatever the numbers in
        the arguments are, or returns None
    may_depend_on_batch : whether a row's results are sums, whose order a kernel may choose by how many rows a
        call has: its last bits may then be others in another batch
    captured : whether servers capture its calls in graphs; where not, a kernel may read from the device
    like : ``like(**arguments)`` checks the arguments and returns tensors of the results' shapes and dtypes,
        for a reference that must look at the data
    longer : the axis of a result that may be longer than ``like`` says: its length depends on the data
    """

    reference: Kernel
    cases: tuple[Case, ...]
    bound: Bound
    rows: Mapping[str, int] = field(default_factory=dict, kw_only=True)
    sequences: str | None = field(default=None, kw_only=True)
    of_sequences: tuple[str, ...] = field(default=(), kw_only=True)
    bounds: tuple[str, ...] = field(default=(), kw_only=True)
    writes: tuple[str, ...] = ()
    writes_if_given: str | None = None
    writes_rows: Mapping[str, str] = field(default_factory=dict)
    reads_rows: Mapping[str, tuple[str, str]] = field(default_factory=dict, kw_only=True)
    picks_rows: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    updates: tuple[str, ...] = ()
    operands: str | None = field(default=None, kw_only=True)
    magnitude: Callable[..., Outputs] | None = None
    comparable: Callable[[Outputs, Arguments], Outputs] | None = None
    as_good: Callable[[tuple[Tensor, ...], tuple[Tensor, ...], Mapping[str, Any]], bool] | None = None
    why_invalid: Callable[[tuple[Tensor, ...], Mapping[str, Any]], str | None] | None = field(
        default=None, kw_only=True
    )
    may_depend_on_batch: bool = field(default=False, kw_only=True)
    captured: bool = True
    like: Callable[..., Outputs] | None = None
    longer: Mapping[int, int] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        named = {*self.rows, *self.writes}
        named |= {*filter(None, [self.writes_if_given, self.sequences, self.operands])}
        named |= {
            *self.writes_rows,
            *self.writes_rows.values(),
            *self.reads_rows,
            *itertools.chain(*self.reads_rows.values()),
            *self.picks_rows,
            *self.picks_rows.values(),
            *self.updates,
            *self.bounds,
            *self.of_sequences,
        }
        unknown = named - set(self.signature.parameters)
        if unknown:
            raise VendorError(f"op {self.name}: {sorted(unknown)} are no arguments of its reference")

    @property
    def name(self) -> str:
        """The op's name, ``silu_and_mul``."""
        return self.reference.__name__

    @property
    def target(self) -> str:
        """The reference's target string, ``module:function``."""
        return f"{self.reference.__module__}:{self.reference.__name__}"

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """The signature that every kernel of this op has."""
        return inspect.signature(self.reference)

    def may_write(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Return which of these bound arguments a kernel may write in this call.

        Of ``writes`` those that are given and whose memory is their own; see ``shares_memory``.
        """
        if self.writes_if_given is not None and arguments.get(self.writes_if_given) is None:
            return self.updated(arguments)
        given = (name for name in self.writes if arguments.get(name) is not None)
        own = (name for name in given if self._is_own(name, arguments))
        return (*own, *self.updated(arguments))

    def updated(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Return which of these bound arguments a call updates in place: those of ``updates`` that it has."""
        return tuple(name for name in self.updates if arguments.get(name) is not None)

    @staticmethod
    def _is_own(name: str, arguments: Mapping[str, Any]) -> bool:
        argument = arguments.get(name)
        others = (value for other, value in arguments.items() if other != name)
        return not isinstance(argument, Tensor) or not shares_memory(argument, *others)

    def unit_of(self, result: torch.dtype, arguments: Mapping[str, Any]) -> torch.dtype:
        """Return the dtype in whose units a result of this dtype is judged; that of integers is their own."""
        if self.operands is None or not result.is_floating_point:
            return result
        operand: torch.dtype = arguments[self.operands].dtype
        return max(result, operand, key=lambda dtype: torch.finfo(dtype).eps)

    def results(self, outputs: Outputs, arguments: Arguments) -> tuple[Tensor, ...]:
        """Return all that a call has computed, in comparable order: what it returned and what it updated."""
        returned = (outputs,) if isinstance(outputs, Tensor) else outputs
        results = (*returned, *(arguments[name] for name in self.updated(arguments)))
        if self.comparable is None:
            return results
        ordered = self.comparable(results, arguments)
        return (ordered,) if isinstance(ordered, Tensor) else ordered

    def results_like(self, arguments: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Return what the contract says a call returns: tensors without data, of its shapes and dtypes.

        The reference runs on tensors without data, so nothing is computed and nothing is written.

        Raises
        ------
        ContractError : the contract excludes this call
        """
        returned = (self.like or self.reference)(**{k: _without_data(v) for k, v in arguments.items()})
        return (returned,) if isinstance(returned, Tensor) else tuple(returned)

    def why_not_like(self, outputs: object, expected: tuple[Tensor, ...]) -> str | None:
        """Say how what a call returned differs from what the contract says, or return None.

        Parameters
        ----------
        outputs : what the call returned, of any type
        expected : as ``results_like`` returns it
        """
        returned = (outputs,) if isinstance(outputs, Tensor) else outputs
        is_many = isinstance(returned, tuple | list) and len(returned) == len(expected)
        is_wrapped = returned is outputs and len(expected) == 1  # callers want the tensor itself
        if is_many and not is_wrapped and all(map(self._is_like, itertools.count(), returned, expected)):  # type: ignore[call-overload]
            return None
        promised = expected[0] if len(expected) == 1 else expected
        return f"it returned {_described(outputs)}, the contract says {_described(promised)}"

    def _is_like(self, index: int, got: object, wanted: Tensor) -> bool:
        if not isinstance(got, Tensor) or (got.dtype, got.dim()) != (wanted.dtype, wanted.dim()):
            return False
        longer = self.longer.get(index)
        return all(
            size == least or (axis == longer and size > least)
            for axis, (size, least) in enumerate(zip(got.shape, wanted.shape, strict=True))
        )

    def written_rows(self, name: str, arguments: Mapping[str, Any]) -> Tensor | None:
        """Return the indices of the rows of a written argument that this call may touch; None: all."""
        if name not in self.writes_rows:
            return None
        indices: Tensor = arguments[self.writes_rows[name]].flatten().long()
        return indices[indices >= 0]

    @property
    def options(self) -> tuple[str, ...]:
        """The names of the contract's options, in order."""
        return tuple(p.name for p in self.signature.parameters.values() if p.kind is p.KEYWORD_ONLY)

    def check_signature(self, kernel: Kernel) -> None:
        """Raise ``VendorError`` unless the kernel's parameters are the reference's, in order.

        Options may be missing.
        """
        given = inspect.signature(kernel).parameters
        expected = {
            name: p
            for name, p in self.signature.parameters.items()
            if p.kind is not p.KEYWORD_ONLY or name in given
        }
        shape = [(p.name, p.kind, p.default) for p in expected.values()]
        if shape != [(p.name, p.kind, p.default) for p in given.values()]:
            raise VendorError(
                f"{self.name}: the kernel {_where(kernel)} takes "
                f"({', '.join(map(_plain, given.values()))}), the contract says "
                f"({', '.join(map(_plain, self.signature.parameters.values()))})"
            )

    def __str__(self) -> str:
        return self.name


def _without_data(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_described, value))})"
    return type(value).__name__


def _where(kernel: Kernel) -> str:
    name = getattr(kernel, "__name__", None)
    return f"{kernel.__module__}:{name}" if name else repr(kernel)


def _plain(parameter: inspect.Parameter) -> str:
    return str(parameter.replace(annotation=inspect.Parameter.empty))

"""What an op must state about itself: reference, what may be written, sample inputs, bound."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import VendorError

__all__ = ["Arguments", "Bound", "Case", "Kernel", "Op", "Outputs", "compute_dtype"]

Outputs = Tensor | tuple[Tensor, ...]
Kernel = Callable[..., Outputs]
Arguments = dict[str, Any]


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype that a reference computes in: float32, or float64 if an input has it."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


@dataclass(frozen=True)
class Bound:
    """How far an implementation may be from float64 arithmetic.

    The error of an element is counted in units of ``eps * magnitude``: ``eps`` of the output's
    dtype, and as magnitude the size of the terms that the element is made of. Rounding a result
    to nearest costs half a unit.

    Parameters
    ----------
    half : for float16 and bfloat16
    single : for float32
    """

    half: float
    single: float

    def of(self, dtype: torch.dtype) -> float:
        """Return the bound for outputs of ``dtype``."""
        return self.half if dtype in (torch.float16, torch.bfloat16) else self.single


@dataclass(frozen=True)
class Case:
    """One sample input of an op.

    Parameters
    ----------
    name : says what is special about it, for test ids
    make : called with a dtype and a seeded CPU generator; returns the arguments by name, on the CPU
    """

    name: str
    make: Callable[[torch.dtype, torch.Generator], Arguments]

    def arguments(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Arguments:
        """Make the arguments with floating dtype ``dtype`` and move them to ``device``.

        Strides are kept: a case that wants a non-contiguous tensor gets one on the device too.
        """
        made = self.make(dtype, torch.Generator().manual_seed(seed))
        return {name: _on_device(value, device) for name, value in made.items()}

    def __str__(self) -> str:
        return self.name


def _on_device(value: Any, device: str) -> Any:
    if not isinstance(value, Tensor) or device == "cpu":
        return value
    # .to() would make the copy dense; a view keeps its strides only with its whole storage.
    whole = value.as_strided((value.untyped_storage().nbytes() // value.element_size(),), (1,), 0)
    return whole.to(device).as_strided(value.shape, value.stride(), value.storage_offset())


@dataclass(frozen=True)
class Op:
    """A computation with a name and a contract.

    The reference is the contract: its name is the op's name, its signature is what every kernel
    has, its docstring gives shapes and dtypes.

    Parameters
    ----------
    reference : plain PyTorch; computes in float32, or in float64 if given float64; writes nothing
    cases : the sample inputs that every implementation must pass
    bound : see ``Bound``
    writes : arguments that a kernel may write (and return) instead of allocating its results
    writes_if_given : if set, those arguments are written only when this optional one is given
    magnitude : the size of the terms each output element is made of, called like the reference;
        None where that is the element itself
    """

    reference: Kernel
    cases: tuple[Case, ...]
    bound: Bound
    writes: tuple[str, ...] = ()
    writes_if_given: str | None = None
    magnitude: Kernel | None = None

    def __post_init__(self) -> None:
        named = {*self.writes, *filter(None, [self.writes_if_given])}
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
        """Return which of these bound arguments a kernel may write in this call."""
        if self.writes_if_given is not None and arguments.get(self.writes_if_given) is None:
            return ()
        return self.writes

    def check_signature(self, kernel: Kernel) -> None:
        """Raise ``VendorError`` unless the kernel's parameters are the reference's, in order."""
        expected, given = self.signature.parameters, inspect.signature(kernel).parameters
        shape = [(p.name, p.kind, p.default) for p in expected.values()]
        if shape != [(p.name, p.kind, p.default) for p in given.values()]:
            raise VendorError(
                f"{self.name}: the kernel {_where(kernel)} takes "
                f"({', '.join(map(_plain, given.values()))}), the contract says "
                f"({', '.join(map(_plain, expected.values()))})"
            )

    def __str__(self) -> str:
        return self.name


def _where(kernel: Kernel) -> str:
    name = getattr(kernel, "__name__", None)
    return f"{kernel.__module__}:{name}" if name else repr(kernel)


def _plain(parameter: inspect.Parameter) -> str:
    return str(parameter.replace(annotation=inspect.Parameter.empty))

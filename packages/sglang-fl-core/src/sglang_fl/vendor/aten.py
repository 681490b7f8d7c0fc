"""What a vendor package says about ATen ops: its kernels for layer 1, and what was measured of them."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang_fl.errors import VendorError
from sglang_fl.vendor.impls import check_fault
from sglang_fl.vendor.targets import check_target, is_installed

__all__ = ["AtenChoice", "AtenKernel", "AtenOffer", "AtenOp", "AtenQuarantined"]

#: An ATen op with its overload: ``mul.Tensor``, ``_softmax``.
_OVERLOAD = re.compile(r"[A-Za-z_]\w*(\.\w+)?")


@dataclass(frozen=True)
class AtenOp:
    """An ATen op that a vendor has a kernel for.

    Parameters
    ----------
    overload : as ATen calls it, with its overload and without namespace: ``mul.Tensor``, ``_softmax``
    name : the kernel's own name, as FlagGems spells it: ``mul``, ``softmax``; several overloads may share one

    Raises
    ------
    VendorError : either is no such name
    """

    overload: str
    name: str

    def __post_init__(self) -> None:
        if not _OVERLOAD.fullmatch(self.overload) or not self.name.isidentifier():
            names = f"{self.overload!r} by {self.name!r}"
            raise VendorError(f"{type(self).__name__}: {names}: such names no ATen op has")

    @property
    def exact(self) -> str:
        """The name that means this overload alone, as PyTorch spells it: ``aten::mm.default``."""
        return f"aten::{self.overload}" if "." in self.overload else f"aten::{self.overload}.default"

    def __str__(self) -> str:
        return f"aten::{self.overload}"


@dataclass(frozen=True)
class AtenKernel(AtenOp):
    """An ATen op with the kernel for it.

    Parameters
    ----------
    function : takes and returns what the ATen op does, and never calls that op for the same device
    module : where the kernel is from, for the record; the function's own module if empty
    """

    function: Callable[..., Any]
    module: str = ""

    @property
    def origin(self) -> str:
        """Where the kernel is from, as FlagGems' log says it: ``flag_gems.ops.mul.mul``."""
        return f"{self.module or self.function.__module__}.{self.name}"


@dataclass(frozen=True)
class AtenChoice:
    """What was measured of some ATen kernels, and whether they replace PyTorch's by default.

    Parameters
    ----------
    names : the ops, in either spelling: ``mul``, ``mul.Tensor``, ``aten::mul``
    is_replaced : the conclusion
    reason : what was measured, and where

    Raises
    ------
    VendorError : no names, or no reason
    """

    names: tuple[str, ...]
    is_replaced: bool
    reason: str

    def __post_init__(self) -> None:
        if not self.names or not self.reason:
            raise VendorError(f"AtenChoice {', '.join(self.names)}: names and reason must not be empty")


@dataclass(frozen=True)
class AtenQuarantined:
    """ATen kernels that are known to be wrong or unsafe on a vendor's chip, with proof.

    As ``Quarantined``; the user's lists that may lift it are those of ATen ops.

    Parameters
    ----------
    names : the ops, in either spelling: ``mul``, ``mul.Tensor``, ``aten::mul``
    reason, library, versions, reproduction : as for ``Quarantined``

    Raises
    ------
    VendorError : a malformed specifier or target, an empty text, no names
    """

    names: tuple[str, ...]
    reason: str
    library: str
    versions: str
    reproduction: str

    def __post_init__(self) -> None:
        where = f"AtenQuarantined {', '.join(self.names)}"
        if not self.names:
            raise VendorError(f"{where}: names is empty")
        check_fault(where, self.reason, self.library, self.versions, self.reproduction)

    def __str__(self) -> str:
        return f"{self.reason} ({self.library} {self.versions})"


@dataclass(frozen=True)
class AtenOffer:
    """The ATen kernels that a vendor offers for layer 1, and which of them run.

    What is on no list is not replaced: it was not measured.

    Parameters
    ----------
    ops : target of a function without arguments that returns the ``AtenOp`` of each kernel; it imports no
        kernel library, so that the names in a user's lists can be checked where there is no device
    kernels : target of one that returns each ``AtenKernel``; called only in processes that run the model
    requires : modules that must be installed; they are looked up, not imported, beforehand
    choices : those measured
    quarantine : those that must not run, and why

    Raises
    ------
    VendorError : a malformed target, the same name in two choices
    """

    ops: str
    kernels: str
    requires: tuple[str, ...] = ()
    choices: tuple[AtenChoice, ...] = ()
    quarantine: tuple[AtenQuarantined, ...] = ()

    def __post_init__(self) -> None:
        check_target("AtenOffer: ops", self.ops)
        check_target("AtenOffer: kernels", self.kernels)
        names = [name for choice in self.choices for name in choice.names]
        for name in names:
            if names.count(name) > 1:
                raise VendorError(f"AtenOffer: {name!r} appears twice in the choices")

    @property
    def missing(self) -> tuple[str, ...]:
        """The required modules that are not installed; none of them is imported."""
        return tuple(module for module in self.requires if not is_installed(module))

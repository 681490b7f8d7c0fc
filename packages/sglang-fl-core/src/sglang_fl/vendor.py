"""What a vendor package says about itself: one ``Vendor`` object with its implementations.

The object is data. Kernels, probes and platforms are named by strings and imported only when
they are needed, so that listing them works on a machine without any accelerator stack.
"""

import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from types import MappingProxyType
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from sglang_fl.errors import VendorError, choices
from sglang_fl.ops import OPS

__all__ = [
    "CORE_API",
    "OLDEST_CORE_API",
    "AtenChoice",
    "AtenKernel",
    "AtenOffer",
    "AtenOp",
    "AtenQuarantined",
    "BackendKind",
    "OpImpl",
    "Quarantined",
    "Vendor",
    "flag_gems_aten",
    "flag_gems_aten_kernel",
    "flag_gems_impl",
    "load_target",
    "why_no_device",
]

#: The version of the contract between core and vendor packages; it changes only when it breaks.
CORE_API = 1
#: The oldest version that core still keeps; packages written for this one up to ``CORE_API`` run.
OLDEST_CORE_API = 1

_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
#: An ATen op with its overload: ``mul.Tensor``, ``_softmax``.
_OVERLOAD = re.compile(r"[A-Za-z_]\w*(\.\w+)?")


class BackendKind(Enum):
    """Where an implementation comes from."""

    FLAGOS = "flagos"
    """Portable Triton kernels: FlagGems' or the vendor package's own."""
    VENDOR = "vendor"
    """The chip's native kernels."""
    REFERENCE = "reference"
    """Plain PyTorch, from core."""

    def __str__(self) -> str:
        return self.value


def load_target(target: str) -> Callable[..., Any]:
    """Import what a target string ``module:function`` names.

    Raises
    ------
    VendorError : the module has no such function
    ImportError : the module, or what it imports, is missing
    """
    module_name, _, attribute = target.partition(":")
    module = importlib.import_module(module_name)
    found: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(found):
        raise VendorError(f"target {target!r}: {module_name} has no function {attribute!r}")
    return found


def _check_target(owner: str, target: str) -> None:
    if not _TARGET.fullmatch(target):
        raise VendorError(f"{owner}: target {target!r} is not of the form 'module:function'")


@dataclass(frozen=True)
class OpImpl:
    """One implementation of one op.

    Parameters
    ----------
    op : the op's name, one of ``sglang_fl.ops.OPS``
    kind : where it comes from
    id : ``flagos``, ``vendor.<vendor>`` or ``reference``, with a suffix where one kind has two
        (``flagos.flag_gems``); unique for the op within the vendor
    target : ``module:function``; the function has the signature of the op's reference
    requires : modules that must be installed; they are looked up, not imported, beforehand

    Raises
    ------
    VendorError : an unknown op, an id that does not begin with its kind, a malformed target
    """

    op: str
    kind: BackendKind
    id: str
    target: str
    requires: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise VendorError(f"OpImpl: there is no op {self.op!r}. {choices(self.op, OPS)}")
        if self.id.split(".")[0] != self.kind.value:
            raise VendorError(f"OpImpl {self.op}: id {self.id!r} must begin with its kind, {self.kind}")
        _check_target(f"OpImpl {self.op} {self.id}", self.target)

    def __str__(self) -> str:
        return self.id


@dataclass(frozen=True)
class Quarantined:
    """A kernel that is known to be wrong or unsafe on a vendor's chip, with proof.

    It does not run while the library has one of these versions, whatever the user's lists say; the user
    lifts that on purpose by ``!op`` in one of them.

    Parameters
    ----------
    op : the op's name
    impl : the id of the implementation
    reason : what goes wrong, in one sentence
    library : the distribution that the kernel comes from, ``flag-gems``
    versions : those with the fault, as a version specifier: ``>=4.2,<4.4``
    reproduction : target of a function without arguments that returns normally as long as the fault is
        there; a test of the vendor package calls it

    Raises
    ------
    VendorError : an unknown op, a malformed specifier or target, an empty text
    """

    op: str
    impl: str
    reason: str
    library: str
    versions: str
    reproduction: str

    def __post_init__(self) -> None:
        where = f"Quarantined {self.op} {self.impl}"
        if self.op not in OPS:
            raise VendorError(f"{where}: there is no op {self.op!r}. {choices(self.op, OPS)}")
        if not self.impl:
            raise VendorError(f"{where}: impl is empty")
        _check_fault(where, self)

    def __str__(self) -> str:
        return f"{self.reason} ({self.library} {self.versions})"


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
        _check_fault(where, self)

    def __str__(self) -> str:
        return f"{self.reason} ({self.library} {self.versions})"


def _check_fault(where: str, entry: Quarantined | AtenQuarantined) -> None:
    for name in ("reason", "library"):
        if not getattr(entry, name):
            raise VendorError(f"{where}: {name} is empty")
    try:
        SpecifierSet(entry.versions)
    except InvalidSpecifier:
        raise VendorError(f"{where}: versions {entry.versions!r} must be like '>=4.2,<4.4'") from None
    _check_target(f"{where}: reproduction", entry.reproduction)


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
        _check_target("AtenOffer: ops", self.ops)
        _check_target("AtenOffer: kernels", self.kernels)
        names = [name for choice in self.choices for name in choice.names]
        for name in names:
            if names.count(name) > 1:
                raise VendorError(f"AtenOffer: {name!r} stands twice in the choices")

    @property
    def missing(self) -> tuple[str, ...]:
        """The required modules that are not installed; none of them is imported."""
        return tuple(module for module in self.requires if not is_installed(module))


def flag_gems_aten(
    choices: tuple[AtenChoice, ...] = (), quarantine: tuple[AtenQuarantined, ...] = ()
) -> AtenOffer:
    """Return the offer of FlagGems' ATen kernels, with those that FlagGems has for this vendor's chip.

    FlagGems finds the chip by itself unless ``GEMS_VENDOR`` names it; see ``Vendor.environment``.
    """
    return AtenOffer(
        ops="sglang_fl.flagos.aten_ops:ops",
        kernels="sglang_fl.flagos.aten:kernels",
        requires=("flag_gems", "triton"),
        choices=choices,
        quarantine=quarantine,
    )


def flag_gems_aten_kernel(name: str) -> Callable[..., Any]:
    """Return one of FlagGems' ATen kernels, for the reproduction of its fault.

    Parameters
    ----------
    name : of the ATen op with its overload, ``lt.Tensor``, or of FlagGems' function, ``lt``

    Raises
    ------
    VendorError : FlagGems offers no such kernel on this machine
    """
    kernels: tuple[AtenKernel, ...] = load_target("sglang_fl.flagos.aten:kernels")()
    for kernel in kernels:
        if name in (kernel.overload, kernel.name):
            return kernel.function
    raise VendorError(f"FlagGems has no ATen kernel {name!r} on this machine")


def flag_gems_impl(op: str, impl_id: str = "flagos") -> OpImpl:
    """Return the implementation of an op by core's FlagGems call, which is the same on every chip.

    Parameters
    ----------
    op : the op's name
    impl_id : ``flagos.flag_gems`` where the vendor has a portable kernel of its own as well
    """
    target = f"sglang_fl.flagos.{op}:{op}"
    return OpImpl(op, BackendKind.FLAGOS, impl_id, target, requires=("flag_gems", "triton"))


def is_installed(module: str) -> bool:
    """Whether a module could be imported; it is looked up, not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # the package it would lie in is missing
        return False


def why_no_device(module: str, device_type: str) -> str | None:
    """Probe for a device that a package adds to PyTorch, such as ``torch_npu``.

    Parameters
    ----------
    module : the package, imported if it is installed
    device_type : the name under which it registers with PyTorch: ``torch.<device_type>``

    Returns
    -------
    None where PyTorch sees such a device, else the reason. Never raises.
    """
    if not is_installed(module):
        return f"{module} is not installed"
    try:
        importlib.import_module(module)
        count = getattr(importlib.import_module("torch"), device_type).device_count()
    except Exception as error:  # noqa: BLE001 - a broken driver stack raises anything; it is the reason
        return f"{module} cannot be used: {type(error).__name__}: {error}"
    return None if count else f"{module} sees no device"


@dataclass(frozen=True)
class Vendor:
    """A chip's maker, as far as sglang-fl is concerned.

    Parameters
    ----------
    name : the name of its entry point in the group ``sglang_fl.vendors``
    device_type : PyTorch's string for its devices, ``cuda``, ``npu``, ``mlu``, ``cpu``
    core_api : the ``CORE_API`` that the package was written for
    probe : target of a function without arguments that returns None where the chip is present,
        else one sentence that says why it is not; cheap, and never raising
    impls : the implementations; the references of core are added to them
    defaults : settings by their names in lower case without the prefix, ``{"prefer": "vendor"}``;
        weaker than the user's, stronger than core's
    platform : the class path ``pkg.mod.Class`` of its SGLang platform, only where SGLang
        has none for the device
    quarantine : which of ``impls`` must not run, and why
    aten : its ATen kernels, for layer 1; None where it has none
    environment : variables that its kernel libraries read, set before any of them is imported unless the
        user has set them: ``{"GEMS_VENDOR": "nvidia"}``

    Raises
    ------
    VendorError : a malformed name or target, two implementations with the same op and id, a quarantine
        of what is not among them
    """

    name: str
    device_type: str
    core_api: int
    probe: str
    impls: tuple[OpImpl, ...] = ()
    defaults: Mapping[str, str] = field(default_factory=dict)
    platform: str | None = None
    quarantine: tuple[Quarantined, ...] = ()
    aten: AtenOffer | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise VendorError(f"Vendor: name {self.name!r} must be lower case letters, digits and '_'")
        _check_target(f"vendor {self.name}: probe", self.probe)
        seen: set[tuple[str, str]] = set()
        for impl in self.impls:
            if (impl.op, impl.id) in seen:
                raise VendorError(f"vendor {self.name}: {impl.op} has two implementations {impl.id!r}")
            self._check_kind(impl)
            seen.add((impl.op, impl.id))
        for name in ("defaults", "environment"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        for setting, text in self.defaults.items():
            if not isinstance(text, str):
                raise VendorError(f"vendor {self.name}: the default {setting}={text!r} must be a text")
        for entry in self.quarantine:
            if (entry.op, entry.impl) not in seen:
                raise VendorError(
                    f"vendor {self.name}: the quarantine of {entry.op} names {entry.impl!r}. "
                    f"{choices(entry.impl, [impl.id for impl in self.impls if impl.op == entry.op])}"
                )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the read-only mappings as what they were given as: tests send vendors to other processes."""
        values = (getattr(self, entry.name) for entry in fields(self))
        return Vendor, tuple(dict(v) if isinstance(v, MappingProxyType) else v for v in values)

    def _check_kind(self, impl: OpImpl) -> None:
        if impl.kind is BackendKind.VENDOR and impl.id.split(".")[1:2] != [self.name]:
            raise VendorError(
                f"vendor {self.name}: {impl.op} claims the id {impl.id!r}; "
                f"native kernels of this vendor are 'vendor.{self.name}'"
            )
        if impl.kind is BackendKind.REFERENCE:
            raise VendorError(f"vendor {self.name}: {impl.op}: references come from core alone")

    def __str__(self) -> str:
        return self.name

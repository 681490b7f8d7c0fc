"""What a vendor package says about itself: one ``Vendor`` object with its implementations."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from sglang_fl.errors import VendorError, choices
from sglang_fl.vendor.aten import AtenOffer
from sglang_fl.vendor.impls import BackendKind, OpChoice, OpImpl, Quarantined
from sglang_fl.vendor.targets import check_target

__all__ = ["CORE_API", "OLDEST_CORE_API", "Vendor"]

#: The version of the contract between core and vendor packages; it changes only when it breaks.
CORE_API = 1
#: The oldest version that core still keeps; packages written for this one up to ``CORE_API`` run.
OLDEST_CORE_API = 1
_NAME = re.compile(r"[a-z][a-z0-9_]*")


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

    choices : which of ``impls`` run by default, as far as that was measured

    Raises
    ------
    VendorError : a malformed name or target, two implementations with the same op and id, a quarantine or a
        choice of what is not among them
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
    choices: tuple[OpChoice, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise VendorError(f"Vendor: name {self.name!r} must be lower case letters, digits and '_'")
        check_target(f"vendor {self.name}: probe", self.probe)
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
        named: list[tuple[str, Quarantined | OpChoice]] = [("quarantine", entry) for entry in self.quarantine]
        for what, entry in [*named, *(("choice", choice) for choice in self.choices)]:
            if (entry.op, entry.impl) not in seen:
                raise VendorError(
                    f"vendor {self.name}: the {what} of {entry.op} names {entry.impl!r}. "
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

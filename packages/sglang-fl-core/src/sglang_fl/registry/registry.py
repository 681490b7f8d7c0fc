"""The implementations of each op that the chosen vendor brings, and which of them must not run here.

Built once in each process, read-only afterwards.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sglang_fl.errors import SettingsError, choices, quoted
from sglang_fl.ops import OPS
from sglang_fl.registry.installed import InstalledVendor
from sglang_fl.registry.quarantine import is_in_force
from sglang_fl.vendor import BackendKind, OpChoice, OpImpl, Quarantined, Vendor, is_installed

if TYPE_CHECKING:
    from sglang_fl.ops import Op

__all__ = ["Registry", "why_not_installed"]


def why_not_installed(impl: OpImpl) -> str | None:
    """Say which required modules are not installed, or None. Imports none of them."""
    missing = [module for module in impl.requires if not is_installed(module)]
    return f"{', '.join(missing)} is not installed" if missing else None


def reference_target(op_name: str) -> str:
    """Return where the reference of an op is: the module of the op has its name, and so has the function."""
    return f"sglang_fl.ops.{op_name}:{op_name}"


@dataclass(frozen=True)
class Registry:
    """The chosen vendor's implementations and core's references.

    Parameters
    ----------
    vendor : the chosen one; its chip is here
    installed : all that were found, for reports
    """

    vendor: Vendor
    installed: tuple[InstalledVendor, ...]

    def implementations(self, op: "Op | str") -> tuple[OpImpl, ...]:
        """Return the implementations of an op, in the order of the vendor's list, reference last.

        Asked by the op's name this imports no op, and so no PyTorch.
        """
        name = str(op)
        reference = OpImpl(name, BackendKind.REFERENCE, "reference", reference_target(name))
        return (*(impl for impl in self.vendor.impls if impl.op == name), reference)

    def quarantine(self, op: "Op | str") -> tuple[Quarantined, ...]:
        """Return the quarantine entries of an op, or of the op of this name, that are in force here."""
        return tuple(entry for entry in self.vendor.quarantine if entry.op == str(op) and is_in_force(entry))

    def choice(self, impl: OpImpl) -> OpChoice | None:
        """Return what was measured of an implementation, or None."""
        found = (c for c in self.vendor.choices if (c.op, c.impl) == (impl.op, impl.id))
        return next(found, None)

    @staticmethod
    def check_name(name: str) -> str:
        """Return the name of an op; nothing is imported.

        Raises
        ------
        SettingsError : there is none
        """
        if name not in OPS:
            raise SettingsError(f"there is no op {quoted(name)}. {choices(name, OPS)}")
        return name

    @staticmethod
    def op(name: str) -> "Op":
        """Return the op of that name, which is imported.

        Raises
        ------
        SettingsError : there is none
        """
        return OPS[Registry.check_name(name)]

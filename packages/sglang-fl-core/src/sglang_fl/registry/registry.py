"""The implementations of each op that the chosen vendor brings, and which of them must not run here.

Built once in each process, read-only afterwards.
"""

from dataclasses import dataclass

from sglang_fl.errors import SettingsError, choices, quoted
from sglang_fl.ops import OPS, Op
from sglang_fl.registry.installed import InstalledVendor
from sglang_fl.registry.quarantine import is_in_force
from sglang_fl.vendor import BackendKind, OpImpl, Quarantined, Vendor, is_installed

__all__ = ["Registry", "why_not_installed"]


def why_not_installed(impl: OpImpl) -> str | None:
    """Say which required modules are not installed, or None. Imports none of them."""
    missing = [module for module in impl.requires if not is_installed(module)]
    return f"{', '.join(missing)} is not installed" if missing else None


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

    def implementations(self, op: Op) -> tuple[OpImpl, ...]:
        """Return the implementations of an op, in the order of the vendor's list, reference last."""
        reference = OpImpl(op.name, BackendKind.REFERENCE, "reference", op.target)
        return (*(impl for impl in self.vendor.impls if impl.op == op.name), reference)

    def quarantine(self, op: Op) -> tuple[Quarantined, ...]:
        """Return the quarantine entries of an op that are in force here."""
        return tuple(entry for entry in self.vendor.quarantine if entry.op == op.name and is_in_force(entry))

    @staticmethod
    def op(name: str) -> Op:
        """Return the op of that name.

        Raises
        ------
        SettingsError : there is none
        """
        if name not in OPS:
            raise SettingsError(f"there is no op {quoted(name)}. {choices(name, OPS)}")
        return OPS[name]

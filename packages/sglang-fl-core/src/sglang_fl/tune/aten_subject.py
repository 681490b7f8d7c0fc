"""Which ATen ops there are to choose from (layer 1), and which are replaced at present. From names alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from sglang_fl.aten import free_ops, offered_ops, plan_layer_1
from sglang_fl.aten.names import find_all
from sglang_fl.errors import SettingsError, VendorError, quoted
from sglang_fl.settings import Settings
from sglang_fl.startup import Configuration
from sglang_fl.tune.aten_decide import KERNEL, PYTORCH
from sglang_fl.vendor import Vendor

__all__ = ["AtenSubject", "aten_subject_of"]

#: Settings that stand above the list that the file will hold, or against it.
ABOVE = ("flagos_whitelist", "flagos_blacklist")


@dataclass(frozen=True)
class AtenSubject:
    """The ATen ops that can be put on the white list or taken off it, by their exact names.

    Parameters
    ----------
    ops : those that are measured where the model calls them
    replaced : all that are replaced at present
    lifted : names whose quarantine the user has lifted
    why_not : why none is measured though the vendor offers some; else empty
    """

    ops: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    lifted: tuple[str, ...] = ()
    why_not: str = ""

    def present(self, op: str) -> str:
        """Return whose kernel an op runs on at present."""
        return KERNEL if op in self.replaced else PYTORCH


def aten_subject_of(configuration: Configuration, wanted: Sequence[str], is_asked: bool) -> AtenSubject:
    """Return the ATen ops to choose from.

    Parameters
    ----------
    configuration : the settings and the chosen vendor
    wanted : only these ops, in either spelling; none for all
    is_asked : whether ATen ops are measured at all, beside being replaced

    Raises
    ------
    SettingsError : a wanted name means no op of the vendor's, or one that may not be replaced, or a setting
        stands against all of them
    VendorError : the vendor cannot tell its ops, and the user has asked for them
    """
    settings, vendor = configuration.settings, configuration.registry.vendor
    plan = plan_layer_1(configuration)
    replaced = tuple(op.exact for op in plan.replaced) if plan else ()
    lifted = (*settings.flagos_whitelist.lifted, *settings.flagos_blacklist.lifted)
    why_not = _why_not(settings, vendor)
    if wanted and (why_not or vendor.aten is None):
        reason = why_not or f"vendor {vendor} has no ATen kernels (layer 1)"
        raise SettingsError(f"--op {quoted(wanted[0])}: {reason}")
    if vendor.aten is None or not is_asked or why_not:
        return AtenSubject((), replaced, lifted, why_not if is_asked else "")
    try:
        ops = _free(settings, vendor, wanted)
    except VendorError as error:
        if wanted:
            raise
        return AtenSubject((), replaced, lifted, str(error))
    return AtenSubject(ops, replaced, lifted)


def _why_not(settings: Settings, vendor: Vendor) -> str:
    if vendor.aten is None:
        return ""
    if vendor.aten.missing:
        return f"{', '.join(vendor.aten.missing)} is not installed, whose ATen kernels layer 1 needs"
    above = [name for name in ABOVE if settings.source(name) == "environment"]
    if settings.source("use_flaggems") == "environment" and not settings.use_flaggems:
        above.append("use_flaggems")
    if not above:
        return ""
    return f"{settings.quoted(above[0])}: it stands above the file that tune writes"


def _free(settings: Settings, vendor: Vendor, wanted: Sequence[str]) -> tuple[str, ...]:
    free = free_ops(settings, vendor)
    if not wanted:
        return tuple(op.exact for op in free)
    meant = find_all(wanted, offered_ops(vendor), "--op")
    for name, ops in meant.items():
        if not any(op in free for op in ops):
            raise SettingsError(
                f"--op {quoted(name)}: it is in quarantine here, or your black list names it. "
                "`sglang-fl ops --aten` says why."
            )
    return tuple(op.exact for op in free if any(op in ops for ops in meant.values()))

"""Which vendors are installed, and whose chip is here.

A faulty vendor package is listed with its fault and left alone: it harms neither core nor another
vendor.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from sglang_fl.errors import SettingsError, VendorError, choices, quoted
from sglang_fl.foreign_names import NAMES, PUBLISHED
from sglang_fl.registry.cpu import CPU
from sglang_fl.registry.handshake import check_core_api
from sglang_fl.registry.isolation import probe
from sglang_fl.vendor import Vendor

__all__ = ["InstalledVendor", "choose_vendor", "installed_vendors"]

GROUP = "sglang_fl.vendors"
#: The entry point of core's own vendor, whose name nobody else may claim.
_CPU = "sglang_fl.registry.cpu:CPU"


@dataclass(frozen=True)
class InstalledVendor:
    """What was found under one name in the entry-point group.

    Parameters
    ----------
    name : the entry point's name
    distribution : the package that brings it, with its version
    vendor : its object, or None where it could not be read
    fault : what is wrong with the package, or None
    absence : why its chip is not here, or None where it is
    """

    name: str
    distribution: str
    vendor: Vendor | None = None
    fault: str | None = None
    absence: str | None = None

    @property
    def is_available(self) -> bool:
        """Whether its kernels could run in this process."""
        return self.vendor is not None and self.fault is None and self.absence is None

    @property
    def why_not(self) -> str:
        """Why it is not available; empty where it is."""
        return self.fault or self.absence or ""


def installed_vendors() -> tuple[InstalledVendor, ...]:
    """Find the vendors in the entry-point group and probe for their chips.

    A faulty package is returned with its fault, and raises nothing.
    """
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    counts = Counter(point.name for point in points)
    found: list[InstalledVendor] = []
    for point in points:
        if point.value == _CPU or (counts[point.name] == 1 and point.name != CPU.name):
            vendor = _read(point)
        else:
            fault = f"the vendor name {point.name!r} is claimed by {_claimants(point.name, points)}"
            vendor = InstalledVendor(point.name, _distribution(point), fault=fault)
        found.append(vendor)
    return tuple(found)


def _claimants(name: str, points: Iterable[EntryPoint]) -> str:
    return " and ".join(sorted({_distribution(point) for point in points if point.name == name}))


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _read(point: EntryPoint) -> InstalledVendor:
    """Read a package's object and probe for its chip."""
    distribution = _distribution(point)
    try:
        vendor = _load(point)
        absence = probe(vendor)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - any fault of a foreign package stays its own
        fault = str(error) if isinstance(error, VendorError) else f"{type(error).__name__}: {error}"
        return InstalledVendor(point.name, distribution, fault=fault)
    return InstalledVendor(point.name, distribution, vendor, absence=absence)


def _load(point: EntryPoint) -> Vendor:
    vendor = point.load()
    if not isinstance(vendor, Vendor):
        raise VendorError(
            f"its entry point names a {type(vendor).__name__}, not a sglang_fl.vendor.Vendor object"
        )
    if vendor.name != point.name:
        raise VendorError(f"its entry point is called {point.name!r}, its Vendor object {vendor.name!r}")
    check_core_api(vendor.core_api, point.dist)
    return vendor


def choose_vendor(
    installed: Iterable[InstalledVendor], name: str | None = None, title: str = "SGLANG_FL_PLATFORM"
) -> Vendor:
    """Choose the vendor whose kernels this process uses.

    Parameters
    ----------
    installed : as ``installed_vendors`` returns them
    name : the vendor that the user named, or None to take the one whose chip is here
    title : where the user named it

    Returns
    -------
    Vendor : the named one, else the only available one, else the built-in ``cpu``

    Raises
    ------
    SettingsError : the named vendor is not installed or not available; several are available
    """
    # Of several that claim one name the available one, if any, speaks for it: core's own cpu.
    by_name = {found.name: found for found in sorted(installed, key=lambda found: found.is_available)}
    available = {
        found.name: found.vendor for found in by_name.values() if found.vendor and found.is_available
    }
    if name is not None:
        if name not in available:
            raise SettingsError(f"{title}={quoted(name)}: {_why_not_chosen(by_name, list(available), name)}")
        return available[name]
    chips = [vendor for vendor in available.values() if vendor.name != CPU.name]
    if len(chips) > 1:
        names = ", ".join(f"{v.name} ({by_name[v.name].distribution})" for v in chips)
        raise SettingsError(
            f"SGLANG_FL_PLATFORM is not set, and several vendors are available: {names}. "
            f"Set it to one of them."
        )
    if not chips and CPU.name not in available:
        raise SettingsError(
            f"the entry points of sglang-fl-core are missing: group {GROUP!r} has no vendor "
            f"{CPU.name!r}. Install the package instead of putting its source on PYTHONPATH."
        )
    return chips[0] if chips else available[CPU.name]


def _why_not_chosen(by_name: dict[str, InstalledVendor], available: list[str], name: str) -> str:
    if name not in by_name:
        ours = NAMES.get(name.lower(), (name.lower(),))[0]
        known = f"{quoted(name)} is called {ours} here. " if ours != name else ""
        package = f" (sglang-fl-{ours})" if ours in PUBLISHED else ""
        remedy = f"Write {ours}" if ours in by_name else f"Install its package{package}"
        return (
            f"no such vendor is installed. {choices(name, by_name)} {known}{remedy}, or unset the variable."
        )
    return (
        f"that vendor is installed but not available: {by_name[name].why_not}. "
        f"Available: {', '.join(available)}."
    )

"""Whether this core can work with a vendor package that was written for another version of their contract."""

from importlib.metadata import Distribution

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from sglang_fl._version import __version__
from sglang_fl.errors import VendorError
from sglang_fl.vendor import CORE_API, OLDEST_CORE_API

__all__ = ["SUPPORTED", "check_core_api"]

CORE = "sglang-fl-core"
#: The versions of the contract that this core keeps.
SUPPORTED = range(OLDEST_CORE_API, CORE_API + 1)


def check_core_api(core_api: object, package: Distribution | None, supported: range = SUPPORTED) -> None:
    """Refuse a vendor package whose contract this core does not keep.

    Parameters
    ----------
    core_api : what the package's ``Vendor`` object states
    package : the installed distribution, or None where it is not known
    supported : the versions that this core keeps

    Raises
    ------
    VendorError : which package to change, and to which version
    """
    if not isinstance(core_api, int) or isinstance(core_api, bool):
        raise VendorError(f"core_api={core_api!r} must be the number of a core API, such as {supported[-1]}")
    if core_api in supported:
        return
    name = package.name if package else "the vendor package"
    needs = f"{CORE}{_wanted_core(package)}"
    if core_api > supported[-1]:
        remedy = f"upgrade {CORE} to a version with core API {core_api}: {name} asks for {needs}"
    else:
        version = f" to a version later than {package.version}," if package else " to"
        remedy = f"upgrade {name}{version} one for core API {_span(supported)}; this one asks for {needs}"
    raise VendorError(
        f"it was written for core API {core_api}, {CORE} {__version__} has {_span(supported)}: {remedy}"
    )


def _span(supported: range) -> str:
    first, last = supported[0], supported[-1]
    return str(last) if first == last else f"{first} to {last}"


def _wanted_core(package: Distribution | None) -> str:
    """Return the versions of core that the package's own metadata ask for: ``>=0.2,<0.3``."""
    for text in (package.requires if package else None) or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if canonicalize_name(requirement.name) == CORE and requirement.specifier:
            return ",".join(sorted(map(str, requirement.specifier), reverse=True))
    return " of any version"

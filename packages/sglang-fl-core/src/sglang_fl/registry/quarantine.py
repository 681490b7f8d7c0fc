"""Whether a quarantine entry is in force: it is, unless the library is known to be free of the fault."""

import importlib.util
import json
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from sglang_fl.vendor import AtenQuarantined, Quarantined

__all__ = ["is_in_force"]

#: The modules of distributions that are not called like them.
_MODULES = {"sglang-kernel": "sgl_kernel", "triton-ascend": "triton"}


def is_in_force(entry: Quarantined | AtenQuarantined) -> bool:
    """Whether the library of an entry may have the fault here.

    So it is where one of its versions is among those with the fault, and where the module can be imported
    and nobody can say of which version it is: a checkout on ``PYTHONPATH``, broken metadata, a version that
    cannot be compared or that says nothing. A build on the way to a version counts as that version too.
    """
    versions = SpecifierSet(entry.versions)
    return any(
        version is None
        or versions.contains(version, prereleases=True)
        or (version.is_devrelease and versions.contains(version.base_version))
        for version in _versions(entry.library)
    )


def _versions(library: str) -> set[Version | None]:
    """Return the versions that may be imported; None stands for one that is not known."""
    distributions = list(metadata.distributions(name=library))
    spec = _spec(library)
    if spec is None:
        return {_version(distribution) for distribution in distributions}
    # A distribution in another folder says nothing about a module that is found before it.
    return {_version(found) for found in distributions if _holds(found, spec)} or {None}


def _spec(library: str) -> ModuleSpec | None:
    name = canonicalize_name(library)
    try:
        return importlib.util.find_spec(_MODULES.get(name, name.replace("-", "_")))
    except ValueError:  # a module without a spec is loaded under this name
        return ModuleSpec(name, None)


def _holds(distribution: metadata.Distribution, spec: ModuleSpec) -> bool:
    """Whether a distribution speaks for a module: both lie in one folder, or it is an editable one."""
    try:
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    except (OSError, ValueError):
        origin = {}
    if isinstance(origin, dict) and origin.get("dir_info", {}).get("editable"):
        return True
    places = [Path(place).parent for place in spec.submodule_search_locations or ()]
    if not places and spec.origin:
        places = [Path(spec.origin).parent]
    here = Path(str(distribution.locate_file(""))).resolve()
    return any(place.resolve() == here for place in places)


def _version(distribution: metadata.Distribution) -> Version | None:
    try:
        version = Version(distribution.version)
    except Exception:  # noqa: BLE001 - broken metadata raise anything, and what they hide is not known
        return None
    # What build tools write where they find no version.
    return None if version.release in ((0,), (0, 0), (0, 0, 0)) else version

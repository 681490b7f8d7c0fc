"""What the kit found of a vendor on a machine, as JSON that another machine's can be compared with."""

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from sglang_fl._version import __version__
from sglang_fl.conformance.verdict import Verdict
from sglang_fl.errors import SettingsError
from sglang_fl.logs.json_text import read_json
from sglang_fl.logs.shared_file import write_text
from sglang_fl.vendor import CORE_API, Vendor

__all__ = ["differences", "is_passed", "make_certificate", "read_certificate", "write_certificate"]

FORMAT = 1

Certificate = dict[str, Any]


def make_certificate(
    vendor: Vendor, package: str, verdicts: Iterable[Verdict], not_verified: Iterable[str] = ()
) -> Certificate:
    """Return the certificate of a vendor on this machine.

    Parameters
    ----------
    vendor : whose implementations were checked
    package : the distribution that brings it, with its version
    verdicts : what became of each
    not_verified : what is installed and was not looked at, one sentence each
    """
    content: Certificate = {
        "format": FORMAT,
        "vendor": vendor.name,
        "package": package,
        "core_api": CORE_API,
        "device": _device(vendor.device_type),
        "versions": _versions(vendor),
        "not_verified": list(not_verified),
        "implementations": [{"state": verdict.state, **asdict(verdict)} for verdict in verdicts],
    }
    return {**content, "hash": _hash(content)}


def _device(device_type: str) -> str:
    if device_type == "cpu":
        return platform.machine()
    return str(torch.get_device_module(device_type).get_device_name())


def _versions(vendor: Vendor) -> dict[str, str]:
    """Return the versions of core, Python, PyTorch and the kernel libraries."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "sglang-fl-core": __version__}
    for module in sorted({module for impl in vendor.impls for module in impl.requires}):
        name = module.partition(".")[0].replace("_", "-")
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _hash(content: Certificate) -> str:
    """Return a hash of all but the hash itself, however the file is laid out."""
    bare = {name: value for name, value in content.items() if name != "hash"}
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()


def is_passed(certificate: Certificate) -> bool:
    """Whether nothing failed, and something was checked."""
    states = {row["state"] for row in certificate["implementations"]}
    return "passes" in states and "fails" not in states


def write_certificate(certificate: Certificate, path: Path) -> None:
    """Write a certificate as JSON."""
    write_text(path, json.dumps(certificate, indent=2) + "\n")


def read_certificate(path: Path) -> Certificate:
    """Read a certificate.

    Raises
    ------
    SettingsError : there is none, it is of another format, or it was changed after it was written
    """
    try:
        content = read_json(path)
    except ValueError as error:
        raise SettingsError(f"{path}: it cannot be read as a certificate: {error}") from None
    if not isinstance(content, dict) or "format" not in content:
        raise SettingsError(f"{path}: it is no certificate: `sglang-fl verify --certificate FILE` writes one")
    if content["format"] != FORMAT:
        reads = f"sglang-fl-core {__version__} reads format {FORMAT}"
        raise SettingsError(f"{path}: it is a certificate of format {content['format']!r}, and {reads}")
    if content.get("hash") != _hash(content):
        raise SettingsError(f"{path}: its hash does not fit what stands in it: it was changed")
    return content


def differences(one: Certificate, other: Certificate) -> Iterator[tuple[str, str, str]]:
    """Yield what differs between two certificates: where, what the first says, what the other says.

    Times are left out: they always differ. A digest tells whether two machines compute the same bits.
    """
    for name in ("vendor", "package", "core_api", "device"):
        yield from _unequal(name, one[name], other[name])
    for name in sorted({*one["versions"], *other["versions"]}):
        yield from _unequal(name, one["versions"].get(name), other["versions"].get(name))
    # Certificates of core 0.1.0 do not have it.
    yield from _unequal("not verified", one.get("not_verified", []), other.get("not_verified", []))
    left, right = _by_implementation(one), _by_implementation(other)
    for key in sorted({*left, *right}):
        if key not in left or key not in right:
            yield key, "listed" if key in left else "not listed", "listed" if key in right else "not listed"
            continue
        for name in ("state", "target", "faults", "digest"):
            yield from _unequal(f"{key} {name}", left[key][name], right[key][name])


def _by_implementation(certificate: Certificate) -> dict[str, dict[str, Any]]:
    return {f"{row['op']} {row['impl']}": row for row in certificate["implementations"]}


def _unequal(where: str, one: object, other: object) -> Iterator[tuple[str, str, str]]:
    if one != other:
        yield where, _text(one), _text(other)


def _text(value: object) -> str:
    if isinstance(value, dict):  # faults by aspect
        return "; ".join(fault for faults in value.values() for fault in faults) or "none"
    if isinstance(value, list):
        return "; ".join(value) or "none"
    return "none" if value is None else str(value)

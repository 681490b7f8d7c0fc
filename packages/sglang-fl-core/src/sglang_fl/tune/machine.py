"""What was measured with: the chip, and the versions of what computes."""

import platform
from importlib import metadata

from sglang_fl.diagnostics.doctor.child import run_python
from sglang_fl.registry import Registry

__all__ = ["chip_name", "versions"]

PACKAGES = ("sglang-fl-core", "sglang", "torch", "triton", "flag_gems", "sgl-kernel", "sglang-kernel")
#: Asked in a process of its own: to ask takes memory of the device.
_ASK = """
import torch
from sglang_fl.startup import configure
configure()
device = getattr(torch, {device!r}, None)
ask = getattr(device, "get_device_name", None)
print("CHIP", ask(0) if ask else "")
"""


def chip_name(registry: Registry, seconds: float) -> str:
    """Return what the device calls itself; of a CPU, its architecture."""
    device = registry.vendor.device_type
    name = ""
    if device != "cpu":
        lines = run_python(_ASK.format(device=device), seconds).output.splitlines()
        name = next((line[4:].strip() for line in lines if line.startswith("CHIP")), "")
    return f"{name or platform.machine() or 'unknown'} (vendor {registry.vendor}, device {device})"


def versions(registry: Registry) -> dict[str, str]:
    """Return the versions of Python, of the packages that compute, and of the vendor's package."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    own = [other.distribution for other in registry.installed if other.name == registry.vendor.name]
    return found | {f"vendor {registry.vendor}": own[0] if own else "core's own"}

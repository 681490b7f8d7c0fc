"""Which vendor packages are installed, which one is used here, and what it brings."""

from sglang_fl.registry.installed import InstalledVendor, choose_vendor, installed_vendors
from sglang_fl.registry.quarantine import is_in_force
from sglang_fl.registry.registry import Registry, why_not_installed

__all__ = [
    "InstalledVendor",
    "Registry",
    "choose_vendor",
    "installed_vendors",
    "is_in_force",
    "why_not_installed",
]

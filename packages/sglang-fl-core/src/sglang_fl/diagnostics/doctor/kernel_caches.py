"""Triton and FlagGems keep what they compile and tune in folders: can these be written?"""

from collections.abc import Iterator
from pathlib import Path

from sglang_fl.diagnostics.doctor.configured import configured
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem
from sglang_fl.diagnostics.doctor.foreign import variable
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.diagnostics.doctor.writable import why_no_folder
from sglang_fl.startup import Configuration

__all__ = ["flag_gems_cache", "flag_gems_folder", "may_run_flag_gems", "triton_cache"]


def triton_cache(launch: Launch) -> Iterator[Finding]:
    """Can Triton keep what it compiles?"""
    folder = _triton_folder()
    reason = why_no_folder(folder)
    if reason is None:
        yield ok("Triton cache", f"{folder} can be written")
    else:
        remedy = "set TRITON_CACHE_DIR to a folder that can be written, on a local disk"
        yield problem("Triton cache", f"{folder} cannot be written: {reason}", remedy)


def flag_gems_cache(launch: Launch) -> Iterator[Finding]:
    """Can FlagGems, where its kernels may run, keep its generated code and its database of tuned kernels?"""
    configuration = configured()
    if configuration is None or not may_run_flag_gems(configuration):
        return
    folder = flag_gems_folder()
    reason = why_no_folder(folder)
    if reason is None:
        yield ok("FlagGems' cache", f"{folder} can be written")
    else:
        text = f"{folder} cannot be written: {reason}"
        yield problem("FlagGems' cache", text, "make room for a folder of that name, on a local disk")


def flag_gems_folder() -> Path:
    """Return the folder in which FlagGems keeps generated code and its database."""
    return Path(variable("FLAGGEMS_CACHE_DIR") or Path.home() / ".flaggems")


def may_run_flag_gems(configuration: Configuration) -> bool:
    """Whether an op, fused or ATen, may run on FlagGems here."""
    vendor = configuration.registry.vendor
    needed = any("flag_gems" in impl.requires for impl in vendor.impls)
    return needed or configuration.settings.use_flaggems


def _triton_folder() -> Path:
    own, home = variable("TRITON_CACHE_DIR"), variable("TRITON_HOME")
    if own is not None:
        return Path(own)
    return (Path(home) if home else Path.home()) / ".triton" / "cache"

"""Triton compiles into a folder: can it be written?"""

from collections.abc import Iterator
from pathlib import Path

from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem
from sglang_fl.diagnostics.doctor.foreign import variable
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.diagnostics.doctor.writable import why_no_folder

__all__ = ["triton_cache"]


def triton_cache(launch: Launch) -> Iterator[Finding]:
    """Can Triton keep what it compiles?"""
    folder = _folder()
    reason = why_no_folder(folder)
    if reason is None:
        yield ok("Triton cache", f"{folder} can be written")
    else:
        remedy = "set TRITON_CACHE_DIR to a folder that can be written, on a local disk"
        yield problem("Triton cache", f"{folder} cannot be written: {reason}", remedy)


def _folder() -> Path:
    own, home = variable("TRITON_CACHE_DIR"), variable("TRITON_HOME")
    if own is not None:
        return Path(own)
    return (Path(home) if home else Path.home()) / ".triton" / "cache"

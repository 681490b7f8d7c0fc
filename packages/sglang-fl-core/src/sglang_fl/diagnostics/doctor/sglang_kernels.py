"""Numbers differ: kernels of SGLang's own that are known to be wrong."""

from collections.abc import Iterator
from importlib import metadata

from packaging.version import InvalidVersion, Version

from sglang_fl.diagnostics.doctor.configured import configured
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.sglang_adapter.kernel_faults import faults_in

__all__ = ["kernel_faults"]


def kernel_faults(launch: Launch) -> Iterator[Finding]:
    """Is a kernel of this SGLang's own known to be wrong, and does it run?"""
    configuration = configured()
    try:
        version = Version(metadata.version("sglang"))
    except (metadata.PackageNotFoundError, InvalidVersion):  # told by the check of the release
        return
    if configuration is None:
        return
    found = faults_in(version)
    for fault in found:
        text = f"that of SGLang {fault.releases} {fault.what}"
        if configuration.settings.oot_enabled:
            yield ok(fault.shortcut, f"{text}; it is turned off, its layers run instead", fault.source)
        else:
            remedy = "switch layer 2 on, which turns it off, or take a later SGLang"
            yield problem(fault.shortcut, f"{text}; it runs, because layer 2 is off", remedy)
    if not found:
        yield ok("SGLang's own kernels", f"none is known to be wrong in {version}")

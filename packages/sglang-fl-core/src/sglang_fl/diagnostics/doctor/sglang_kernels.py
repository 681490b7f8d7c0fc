"""Numbers differ, or a layer class has no line: SGLang's wrong kernels, and plugins that take layers."""

from collections.abc import Iterator
from importlib import metadata
from itertools import groupby

from packaging.version import InvalidVersion, Version

from sglang_fl.diagnostics.doctor.configured import configured
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.sglang_adapter.installed_plugins import installed_claims
from sglang_fl.sglang_adapter.kernel_faults import faults_in

__all__ = ["kernel_faults", "kernel_plugins"]


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


def kernel_plugins(launch: Launch) -> Iterator[Finding]:
    """Does a kernel plugin of somebody else take layers?"""
    claims = installed_claims()
    for plugin, found in groupby(claims, lambda claim: claim.plugin):
        taken = ", ".join(f"{claim.what} ({claim.how})" for claim in found)
        text = f"takes {taken}; where it runs, the dispatch log has sglang(plugin:...)"
        yield ok(plugin, text, "an op that you name (SGLANG_FL_PER_OP) is not left to it")
    if not claims:
        yield ok("kernel plugins", "no other plugin's source takes a layer")

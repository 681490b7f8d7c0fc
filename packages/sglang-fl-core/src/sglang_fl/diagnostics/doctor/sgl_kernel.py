"""``ImportError: sgl_kernel``: normal where there is no CUDA, unless something dispatched needs it."""

from collections.abc import Iterator

from sglang_fl.diagnostics.doctor.child import last_line, run_python
from sglang_fl.diagnostics.doctor.configured import configured
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem, unknown
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.dispatch.resolution import Resolution
from sglang_fl.settings import SglangSettings
from sglang_fl.startup import Configuration

__all__ = ["sgl_kernel"]

SECONDS = 120
MODULE = "sgl_kernel"


def sgl_kernel(launch: Launch) -> Iterator[Finding]:
    """Does sgl_kernel import, and does an op that we dispatch need it?"""
    configuration = configured()
    if configuration is None:
        return
    child = run_python(f"import {MODULE}", SECONDS)
    if child.code == 0:
        yield ok(MODULE, "imports")
    elif child.code is None:
        yield unknown(MODULE, f"`import {MODULE}` is not done after {SECONDS} s")
    else:
        yield _judged(configuration, last_line(child.errors))


def _judged(configuration: Configuration, error: str) -> Finding:
    vendor = configuration.registry.vendor
    first = [name for name, resolution in configuration.resolutions.items() if _is_first(resolution)]
    text = f"cannot be imported ({error})"
    if first:
        orders = ";".join(f"{name}=flagos|reference" for name in first)
        remedy = f"install sglang-kernel as SGLang pins it, or SGLANG_FL_PER_OP='{orders}'"
        return problem(MODULE, f"{text}, and these ops would run on it: {', '.join(first)}", remedy)
    if vendor.device_type == "cpu" and SglangSettings.read().use_cpu_engine == "1":
        needed = f"{text}, and with SGLANG_USE_CPU_ENGINE=1 SGLang's own CPU platform imports it and ends"
        remedy = "unset SGLANG_USE_CPU_ENGINE, or install the build of sgl_kernel for CPUs"
        return problem(MODULE, needed, remedy)
    if vendor.device_type == "cuda":
        needed = f"{text}: nothing dispatched runs on it, but SGLang itself does on CUDA"
        return problem(MODULE, needed, "install sglang-kernel as the installed SGLang pins it")
    remedy = "nothing to do: SGLang logs the error and goes on"
    return ok(MODULE, f"not needed off CUDA, and nothing dispatched runs on it; its import: {error}", remedy)


def _is_first(resolution: Resolution) -> bool:
    return bool(resolution.candidates) and MODULE in resolution.candidates[0].requires

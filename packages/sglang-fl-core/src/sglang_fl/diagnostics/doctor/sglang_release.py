"""The dispatch log is empty: is SGLang one that we know, and does it load the plugin?"""

from collections.abc import Iterator
from importlib import metadata

from packaging.version import InvalidVersion, Version

from sglang_fl.diagnostics.doctor.child import Child, last_line, run_python
from sglang_fl.diagnostics.doctor.configured import configured
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem, unknown
from sglang_fl.diagnostics.doctor.installation import several_platforms
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.sglang_adapter import seams
from sglang_fl.sglang_adapter.releases import is_supported, supported_range

__all__ = ["sglang_loads_the_plugin", "sglang_release"]

SECONDS = 180
FORGETFUL = "sglang.benchmark.one_batch, Ray's scheduler actors and encoder-only workers"

#: What SGLang does first in each of its processes, and whether it has called us there.
_LOAD = """
import sglang_fl.plugin as plugin

own, calls = plugin.load_plugin, []
plugin.load_plugin = lambda: (calls.append(1), own())
import sglang
from sglang.srt.plugins import load_plugins

load_plugins()
print("plugin called", len(calls))
"""


def sglang_release(launch: Launch) -> Iterator[Finding]:
    """Is SGLang installed, in a release that layer 2 can enter?"""
    try:
        text = metadata.version("sglang")
        version = Version(text)
    except metadata.PackageNotFoundError:
        yield problem("sglang", "not installed in this Python", f"install sglang {supported_range()}")
        return
    except InvalidVersion:
        yield unknown("sglang", f"its version {text!r} cannot be compared", f"supported: {supported_range()}")
        return
    if is_supported(version):
        yield ok("sglang", f"{version}, supported")
    else:
        remedy = f"install one of {supported_range()}, or a newer sglang-fl-core"
        yield problem("sglang", f"{seams.why_unsupported(version)}: the plugin stays off", remedy)


def sglang_loads_the_plugin(launch: Launch) -> Iterator[Finding]:
    """Import SGLang and have it load its plugins, in a process of its own."""
    if any(True for _ in metadata.distributions(name="sglang")):
        yield _judged(run_python(_LOAD, SECONDS))


def _where_not() -> str:
    """Say in which processes that run a model SGLang loads no plugins."""
    configuration = configured()
    if configuration is None or configuration.registry.vendor.platform is not None:
        return f"our platform loads it in {FORGETFUL} too, where SGLang loads no plugins"
    return f"not in {FORGETFUL}: SGLang loads no plugins there, every op is its own"


def _judged(child: Child) -> Finding:
    what = "loading"
    if child.code is None:
        return unknown(
            what, f"`import sglang` is not done after {SECONDS} s", "see where it waits: py-spy dump"
        )
    if child.code == 0 and "plugin called 1" in child.output:
        return ok(what, "SGLang imports, and calls the plugin", _where_not())
    if child.code == 0:
        return problem(
            what, "SGLang imports and does not call the plugin", "see the rows about plugins above"
        )
    ours = [line for line in child.errors.splitlines() if line.startswith("sglang-fl: ")]
    if ours:
        text = " ".join(line.removeprefix("sglang-fl: ") for line in ours)
        return problem(what, f"a start is refused: {text}", "change the setting that it names")
    error = last_line(child.errors)
    remedy = several_platforms(child.errors) or "repair its installation: pip check"
    return problem(what, f"SGLang cannot be imported: {error}", remedy)

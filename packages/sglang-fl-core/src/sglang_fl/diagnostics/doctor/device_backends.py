"""``import torch`` fails: do the packages load that add devices to PyTorch by themselves?"""

from collections.abc import Iterator
from importlib import metadata

from sglang_fl.diagnostics.doctor.child import Child, last_line, run_python
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem, unknown
from sglang_fl.diagnostics.doctor.foreign import as_set
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.errors import quoted

__all__ = ["device_backends"]

SECONDS = 120
GROUP = "torch.backends"
SWITCH = "TORCH_DEVICE_BACKEND_AUTOLOAD"
#: The one value with which PyTorch loads them, and what it takes where there is none.
ON = "1"


def device_backends(launch: Launch) -> Iterator[Finding]:
    """Does each device backend load that ``import torch`` loads by itself? Each in a process of its own."""
    points = metadata.entry_points(group=GROUP)
    switch = as_set(SWITCH, ON)
    for point in points:
        given = f"{point.name!r}, {point.value!r}, {GROUP!r}"
        code = f"from importlib.metadata import EntryPoint; EntryPoint({given}).load()()"
        yield _judged(point, run_python(code, SECONDS, {SWITCH: "0"}), switch)
    if not points:
        yield ok("device backends", f"no package adds a device to PyTorch by itself ({GROUP})")


def _judged(point: metadata.EntryPoint, child: Child, switch: str) -> Finding:
    is_off, setting = switch != ON, f"{SWITCH}={quoted(switch)}"
    package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
    what = f"device backend {point.name}"
    if child.code is None:
        return unknown(what, f"{package} is not loaded after {SECONDS} s", "see where it waits: py-spy dump")
    if child.code:
        text = f"{package} does not load: {last_line(child.errors)}"
        effect = f"not asked for ({setting})" if is_off else "`import torch` fails with it"
        name = package.split()[0]
        remedy = f"install the {name} that is made for this torch, or uninstall it; until then {SWITCH}=0"
        return problem(what, f"{text}; {effect}", remedy)
    state = f"loads, but {setting} keeps it out" if is_off else "is loaded by `import torch`"
    return ok(what, f"{package} {state}")

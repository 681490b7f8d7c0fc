"""What else SGLang loads: the packages that bring plugins, platforms or backends of ``sglang serve``."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib import metadata

from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem
from sglang_fl.diagnostics.doctor.installation import DISTRIBUTION
from sglang_fl.diagnostics.doctor.launch import Launch

__all__ = ["sglang_plugins"]

SERVE_BACKENDS = "sglang.serve_backends"
#: What SGLang 0.5.23 looks for. Kernel plugins come through the first.
GROUPS = (
    *("sglang.srt.plugins", "sglang.srt.platforms", SERVE_BACKENDS),
    *("sglang.multimodal_gen.plugins", "sglang.multimodal_gen.platforms"),
)
#: Of ``sglang serve``, which refuses to start beside a package that claims one of these.
RESERVED = ("auto", "llm", "diffusion")


def sglang_plugins(launch: Launch) -> Iterator[Finding]:
    """Which other packages does SGLang load, and does ``sglang serve`` take their backends?"""
    points = [point for group in GROUPS for point in metadata.entry_points(group=group)]
    others: defaultdict[str, list[metadata.EntryPoint]] = defaultdict(list)
    for point in points:
        if _package(point).split()[0] != DISTRIBUTION:
            others[_package(point)].append(point)
    yield from _refused([point for point in points if point.group == SERVE_BACKENDS])
    for package, found in sorted(others.items()):
        yield ok(package, "; ".join(_by_group(found)))
    if not others:
        yield ok("SGLang's plugins", "no other package brings any")


def _package(point: metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _by_group(points: list[metadata.EntryPoint]) -> Iterator[str]:
    for group in GROUPS:
        names = sorted(point.name for point in points if point.group == group)
        if names:
            yield f"{group}: {', '.join(names)}"


def _refused(points: list[metadata.EntryPoint]) -> Iterator[Finding]:
    """Yield the names of ``sglang serve --model-type`` with which it does not start."""
    for name, number in sorted(Counter(point.name for point in points).items()):
        packages = sorted(_package(point) for point in points if point.name == name)
        what, remedy = f"serve backend {name}", f"uninstall {' or '.join(packages)}"
        if name in RESERVED:
            text = f"{', '.join(packages)} claims a name of SGLang's own: `sglang serve` does not start"
            yield problem(what, text, remedy)
        elif number > 1:
            text = f"claimed by {' and '.join(packages)}: `sglang serve --model-type {name}` is refused"
            yield problem(what, text, remedy)

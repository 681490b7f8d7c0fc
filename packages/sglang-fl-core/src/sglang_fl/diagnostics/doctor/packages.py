"""Packages that are not what they seem: twice on the path, shadowed, or not as another one pins them."""

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from sglang_fl.diagnostics.doctor.child import last_line, run_python
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem, unknown
from sglang_fl.diagnostics.doctor.launch import Launch

__all__ = ["copies", "extra_of", "flag_gems_pins", "shadow", "torch_pins"]

MODULES = (
    "sglang",
    "sglang_fl",
    "sglang_fl_nvidia",
    "sglang_fl_ascend",
    "sglang_fl_mlu",
    "torch",
    "triton",
    "flag_gems",
    "sgl_kernel",
)
#: What the vendor packages' choices and quarantines were measured with.
MEASURED_FLAG_GEMS = "5.0.2"
#: These come together, and pip replaces them together.
TORCH = ("torch", "torchvision", "torchaudio", "triton", "sglang-kernel", "flashinfer-python")


def copies(launch: Launch) -> Iterator[Finding]:
    """Lies a package more than once on Python's path?"""
    found = {module: _places(module) for module in MODULES}
    doubled = {module: places for module, places in found.items() if len(places) > 1}
    for module, places in doubled.items():
        first, *rest = map(str, places)
        text = f"{first} is used, and hides {', '.join(rest)}"
        yield problem(f"copies of {module}", text, "uninstall one, or take its folder off PYTHONPATH")
    if not doubled:
        yield ok("copies", "each package lies once on Python's path")


def _places(module: str) -> list[Path]:
    folders = [Path(entry or ".") for entry in sys.path]
    found = (folder / module for folder in folders)
    files = (place for place in found if (place / "__init__.py").is_file())
    return list(dict.fromkeys(place.resolve() for place in files))


def shadow(launch: Launch) -> Iterator[Finding]:
    """Does something in the working directory stand in for SGLang? A process that starts here is asked."""
    code = (
        "from importlib.util import find_spec as find\n"
        "spec = find('sglang')\n"
        "print(spec and (spec.origin or list(spec.submodule_search_locations)[0]))"
    )
    child = run_python(code, 30)
    if child.code != 0:
        yield unknown("working directory", f"Python cannot look for sglang: {last_line(child.errors)}")
        return
    found, here = Path(last_line(child.output)), Path.cwd()
    if found.is_relative_to(here) and _is_direct(found.relative_to(here)):
        text = f"{found} in the working directory is what `import sglang` finds"
        yield problem("working directory", text, "start from another folder, or rename that one")
    else:
        yield ok("working directory", f"nothing in {here} stands in for sglang")


def _is_direct(path: Path) -> bool:
    return path.parts[0] in ("sglang", "sglang.py")


def torch_pins(launch: Launch) -> Iterator[Finding]:
    """Is torch, with what belongs to it, the one that the installed SGLang pins?"""
    if not any(True for _ in metadata.distributions(name="sglang")):
        return
    unmet = [line for name, line in _unmet("sglang") if name in TORCH]
    if unmet:
        pins = " ".join(f"'{pin}'" for name, pin in _pins("sglang") if name in TORCH)
        text = f"another package has replaced it: {'; '.join(unmet)}"
        yield problem("torch", text, f"{sys.executable} -m pip install {pins}")
    else:
        yield ok("torch", f"{_version('torch')}, as SGLang {_version('sglang')} wants it")


def flag_gems_pins(launch: Launch) -> Iterator[Finding]:
    """Is everything as the installed FlagGems pins it?"""
    name = next((name for name in ("flag-gems", "flag_gems") if _version(name)), None)
    if name is None:
        return
    unmet = _unmet(name)
    version = _version(name) or ""
    if not unmet and version.partition("+")[0] != MEASURED_FLAG_GEMS:
        text = f"flag-gems {version}: all met; measured and quarantined with {MEASURED_FLAG_GEMS} only"
        yield unknown(
            "FlagGems' pins", text, f"{sys.executable} -m pip install flag-gems=={MEASURED_FLAG_GEMS}"
        )
        return
    if not unmet:
        yield ok("FlagGems' pins", f"flag-gems {version}: all met")
        return
    text = f"flag-gems {_version(name)}: {'; '.join(line for _, line in unmet)}"
    wanted = " ".join(f"'{pin}'" for pinned, pin in _pins(name) if pinned in dict(unmet))
    remedy = (
        f"if an import fails: {sys.executable} -m pip install {wanted}, and see that SGLang's pins still hold"
    )
    yield problem("FlagGems' pins", text, remedy)


def extra_of(distribution: str, requirement: str) -> str | None:
    """Return the extra of a distribution that brings a requirement; None where none does."""
    try:
        found = metadata.metadata(distribution)
    except metadata.PackageNotFoundError:
        return None
    wanted = [
        r for r in map(Requirement, metadata.requires(distribution) or ()) if _plain(r.name) == requirement
    ]
    for extra in found.get_all("Provides-Extra") or ():
        for required in wanted:
            marker = required.marker
            if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
                return str(extra)
    return None


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _pins(distribution: str) -> list[tuple[str, str]]:
    """Return what a distribution requires here: name in lower case with hyphens, and its specifier."""
    found = []
    for text in metadata.requires(distribution) or ():
        try:
            required = Requirement(text)
        except InvalidRequirement:
            continue
        if required.marker is None or required.marker.evaluate({"extra": ""}):
            found.append((required.name.lower().replace("_", "-"), f"{required.name}{required.specifier}"))
    return found


def _unmet(distribution: str) -> list[tuple[str, str]]:
    """Return the requirements that do not hold: name, and what is there instead."""
    found = []
    for name, pin in _pins(distribution):
        installed = _version(name)
        if installed is None:
            found.append((name, f"{pin} is not installed"))
        elif not Requirement(pin).specifier.contains(installed, prereleases=True):
            found.append((name, f"{pin} is wanted, {installed} is installed"))
    return found

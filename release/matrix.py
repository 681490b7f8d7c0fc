"""Every combination of core and a vendor package: as they are now, as last released, and as a later release.

``python -m release.matrix``; in the session ``matrix``. A combination that the version ranges allow is
installed in a fresh environment, where the conformance kit and SGLang's engine run. One that they forbid must
be refused by pip, and where the core API is another one by core, too, if it was installed all the same.
Writes ``docs/version-matrix.md``.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from release.distribution import (
    ROOT,
    ReleaseError,
    build_wheel,
    environment_with,
    export,
    metadata_of,
    version_of,
)

__all__ = ["State", "lacking", "main", "states_of", "try_combination"]

PAGE = ROOT / "docs/version-matrix.md"
VENDORS = ("nvidia", "ascend", "mlu")
#: Vendors whose package offers a simulated chip, on which the kit and the engine run here.
SIMULATED = ("ascend", "mlu")
#: Those of them on whose chip a plain server starts; SGLang's NPU platform asks for the vendor's compiler.
SERVED = ("mlu",)
#: What is said where a package asks a former core for a name or an op that this one has not: it never comes
#: to the number of the core API.
_LACKS = ("ImportError: cannot import name", "OpImpl: there is no op")
#: The state that is made up: the next minor version, whose contract is another one than today's.
LATER = "later"

_KIT = """
import json, sys
from importlib.metadata import entry_points

name, is_simulated = sys.argv[1], sys.argv[2] == "simulated"
if is_simulated:
    from sglang_fl.conformance.simulated import find_chip, load
    load(find_chip(name))
from sglang_fl.conformance import check_declared, verify_impl

(point,) = entry_points(group="sglang_fl.vendors", name=name)
vendor, faults, checked = point.load(), [], 0
for impl in vendor.impls:
    if is_simulated:
        verdict = verify_impl(impl, vendor.device_type, ("cases", "repeat"))
        checked += verdict.state == "passes"
        faults += [fault for found in verdict.faults.values() for fault in found]
    else:
        checked += 1
        faults += check_declared(impl)
print(json.dumps([checked, len(vendor.impls), faults]))
"""


@dataclass(frozen=True)
class State:
    """A package in one state.

    Parameters
    ----------
    label : ``now``, the tag of the last release, or ``later``
    package : ``sglang-fl-core``
    source : a folder with its files
    wheels : where its wheel is built
    """

    label: str
    package: str
    source: Path
    wheels: Path

    @cached_property
    def wheel(self) -> Path:
        """Its wheel."""
        return build_wheel(self.source, self.wheels)

    @property
    def version(self) -> Version:
        """Its version."""
        return Version(version_of(self.source))

    @cached_property
    def requirements(self) -> list[Requirement]:
        """What its wheel requires."""
        return [Requirement(text) for text in metadata_of(self.wheel).get_all("Requires-Dist") or []]

    def allows(self, core: "State") -> bool:
        """Whether this package's requirement takes that core."""
        ranges = (need.specifier for need in self.requirements if need.name == core.package)
        return all(each.contains(core.version) for each in ranges)

    def __str__(self) -> str:
        return f"{self.version} ({self.label})"


def states_of(package: str, folder: Path, root: Path = ROOT) -> list[State]:
    """Return a package's states: now, as last released where that differs, and as a later release.

    Parameters
    ----------
    package : ``sglang-fl-nvidia``
    folder : an empty one to write them into
    """
    references = {"now": "HEAD"}
    tag = last_tag(package, root)
    if tag is not None and _tree("HEAD", package, root) != _tree(tag, package, root):
        references[tag] = tag
    states = []
    for label, reference in (*references.items(), (LATER, "HEAD")):
        source = folder / label / package
        export(root / "packages" / package, source, reference, root)
        states.append(State(label, package, source, folder / label / "wheel"))
    _make_later(states[-1].source, _next_minor(version_of(root / "packages/sglang-fl-core")))
    return states


def last_tag(package: str, root: Path = ROOT) -> str | None:
    """Return the newest release tag of a package, or None."""
    command = ["git", "tag", "--list", f"{package}-v*", "--sort=-version:refname"]
    tags = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split()
    return tags[0] if tags else None


def _tree(reference: str, package: str, root: Path) -> str:
    command = ["git", "rev-parse", f"{reference}:packages/{package}"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def _next_minor(version: str) -> str:
    """Return the minor version after this one, ``0.3`` after ``0.2.1``."""
    before = Version(version)
    return f"{before.major}.{before.minor + 1}"


def _make_later(source: Path, core: str) -> None:
    """Raise a copy's version and its core API, and what it requires of core to that version."""
    (module,) = (source / "src").iterdir()
    _edit(module / "_version.py", r'"[^"]+"', f'"{_next_minor(version_of(source))}.0"')
    if module.name == "sglang_fl":
        _edit(module / "vendor/vendor.py", r"^(OLDEST_)?CORE_API = \d+$", r"\1CORE_API = 99")
    else:
        _edit(module / "__init__.py", r"core_api=\d+", "core_api=99")
        _edit(
            source / "pyproject.toml",
            r'"sglang-fl-core[^"]*"',
            f'"sglang-fl-core>={core},<{_next_minor(core)}"',
        )


def _edit(file: Path, pattern: str, text: str) -> None:
    changed, count = re.subn(pattern, text, file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if not count:
        raise ReleaseError(f"{file}: there is no {pattern} in it")
    file.write_text(changed, encoding="utf-8")


def lacking(cores: Iterable[State]) -> list[str]:
    """Return what these cores require and this environment, which is made for today's, has not."""
    needs = {need for core in cores for need in core.requirements if need.marker is None}
    return sorted(str(need) for need in needs if not _is_installed(need))


def _is_installed(need: Requirement) -> bool:
    try:
        return need.specifier.contains(installed_version(need.name), prereleases=True)
    except PackageNotFoundError:
        return False


def try_combination(core: State, vendor: State, folder: Path) -> tuple[str, str]:
    """Install a combination and see what comes of it.

    Returns
    -------
    (str, str) : whether the ranges allow it; what happened

    Raises
    ------
    ReleaseError : an allowed one does not work, or a forbidden one is not refused by one message
    """
    if vendor.allows(core):
        return "allowed", _run_allowed(core, vendor, folder)
    return "forbidden", _refuse_forbidden(core, vendor, folder)


def _run_allowed(core: State, vendor: State, folder: Path) -> str:
    python = environment_with([core.wheel, vendor.wheel], folder / "venv")
    name = vendor.package.removeprefix("sglang-fl-")
    where = "simulated" if name in SIMULATED else "no chip"
    told = _succeed(python, "-c", _KIT, name, where)
    checked, count, faults = json.loads(told.splitlines()[-1])
    if faults:
        raise ReleaseError(f"core {core}, {vendor.package} {vendor}: {'; '.join(faults)}")
    kit = f"kit: {checked} of {count} {'run' if where == 'simulated' else 'held by their source'} and pass"
    demo = ("-m", "demo", "--keep", folder, *(("--simulated", name) if name in SERVED else ()))
    served = _succeed(python, *demo)
    if "[OOT-DISPATCH]" not in served:
        raise ReleaseError(f"core {core}, {vendor.package} {vendor}: the engine ran no op of ours:\n{served}")
    kernels = sorted(set(re.findall(r"→ (\S+)", served)))
    return f"{kit}; engine: {', '.join(kernels)}"


def _succeed(python: Path, *arguments: object) -> str:
    done = subprocess.run(
        list(map(str, (python, *arguments))), cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ReleaseError(f"{' '.join(map(str, arguments))[-200:]}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def _refuse_forbidden(core: State, vendor: State, folder: Path) -> str:
    """Have pip refuse a combination; install it without asking pip, and have another core API refused."""
    bare = environment_with([], folder / "bare")
    _pretend_requirements(vendor, bare)
    pip = [sys.executable, "-m", "pip", "--python", bare, "install", "--no-index", "--dry-run"]
    done = subprocess.run(
        list(map(str, [*pip, core.wheel, vendor.wheel])), capture_output=True, text=True, check=False
    )
    told = done.stdout + done.stderr
    if not done.returncode or "ResolutionImpossible" not in told or core.package not in told:
        raise ReleaseError(f"core {core}, {vendor.package} {vendor}: pip does not refuse it:\n{told}")
    python = environment_with([core.wheel, vendor.wheel], folder / "venv")
    command = [str(python.parent / "sglang-fl"), "vendors", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = {row["vendor"]: row for row in json.loads(done.stdout or "[]")}
    row = rows.get(vendor.package.removeprefix("sglang-fl-"), {})
    reason = re.sub(r" \(/\S+\)$", "", str(row.get("reason")))  # where it lies in a temporary folder
    is_other_contract = LATER in (core.label, vendor.label)  # both are allowed together
    is_refused = "written for core API" in reason
    must_be_refused = is_other_contract and not reason.startswith(_LACKS)
    if done.returncode or "Traceback" in done.stderr or is_refused != must_be_refused:
        raise ReleaseError(
            f"core {core}, {vendor.package} {vendor}: the handshake says {row}:\n{done.stderr}"
        )
    if not rows["cpu"]["available"]:
        raise ReleaseError(f"core {core}, {vendor.package} {vendor}: it took the reference with it")
    same = "" if is_other_contract else " (the core API is the same)"
    return f"refused by pip; installed all the same{same}: “{reason}”"


def _pretend_requirements(vendor: State, python: Path) -> None:
    """Put there what a package requires beside core, by name alone: pip is asked about our own ranges."""
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    for need in vendor.requirements:
        if need.name == "sglang-fl-core" or need.marker is not None:
            continue
        version = next(str(each.version) for each in need.specifier if each.operator in (">=", "=="))
        info = site / f"{need.name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {need.name}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")


def page(rows: Sequence[tuple[str, ...]], untagged: Sequence[str]) -> str:
    """Return the page of the matrix."""
    head = "| package | its version | core | the ranges | what happens |\n|---|---|---|---|---|\n"
    body = "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows)
    note = ""
    if untagged:
        note = f"\nNo release of {', '.join(untagged)} is tagged yet, so none is in this table.\n"
    return f"""# Versions that go together

Written by `nox -s matrix`: wheels of each state, in a fresh environment on top of SGLang's. *now* is this
commit, a tag the last release where it differs, *later* a next minor version with another core API that is
made up for this. The kit runs on the simulated chip where a package offers one, else targets are held by
their source. The engine runs on the MLU's simulated chip, for the other packages on the CPU.
{note}
{head}{body}"""


def main() -> int:
    """Try all combinations and write the page; the exit status is 1 where one is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vendors", nargs="*", default=VENDORS, help="vendors to try; default: all")
    names = parser.parse_args().vendors
    rows, failures = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        states = {name: states_of(f"sglang-fl-{name}", folder / name) for name in ("core", *names)}
        if more := lacking(states["core"]):
            subprocess.run([sys.executable, "-m", "pip", "install", "-q", *more], check=True)
        for name in names:
            for vendor in states[name]:
                for core in states["core"]:
                    combination = folder / f"{name}-{vendor.label}-{core.label}"
                    combination.mkdir()
                    try:
                        ranges, outcome = try_combination(core, vendor, combination)
                    except ReleaseError as error:
                        ranges, outcome = "", "**fails**"
                        failures.append(str(error))
                    rows.append((vendor.package, str(vendor), str(core), ranges, outcome))
                    sys.stdout.write(f"matrix: {' | '.join(rows[-1])}\n")
                    sys.stdout.flush()
    sys.stdout.write("".join(f"{failure}\n" for failure in failures))
    untagged = [f"sglang-fl-{name}" for name in ("core", *names) if last_tag(f"sglang-fl-{name}") is None]
    if set(names) == set(VENDORS):
        PAGE.write_text(page(rows, untagged), encoding="utf-8")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())

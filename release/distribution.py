"""Build one package for release and check what was built.

``python -m release.distribution nvidia``; in the session ``release``, which has build, twine and towncrier.
Nothing is uploaded: that is the workflow's, on a tag.
"""

import argparse
import email.parser
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

__all__ = [
    "ROOT",
    "ReleaseError",
    "build_twice",
    "build_wheel",
    "check_tree",
    "environment_with",
    "export",
    "main",
    "metadata_of",
    "version_of",
    "wheel_faults",
]

ROOT = Path(__file__).parents[1]
#: The first moment that a zip file can hold; used where there is no commit.
EARLIEST = 315532800


class ReleaseError(Exception):
    """Why a package cannot be released as it is."""


def _run(*command: object, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ReleaseError(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _say(text: str) -> None:
    print(f"release: {text}", flush=True)  # noqa: T201 - whoever releases follows the steps


def version_of(package: Path) -> str:
    """Return the version that the package's source states."""
    (source,) = package.glob("src/*/_version.py")
    found = re.fullmatch(r'__version__ = "([^"]+)"', source.read_text(encoding="utf-8").strip())
    if found is None:
        raise ReleaseError(f"{source}: there is no version in it")
    return found[1]


def check_tree(package: Path, root: Path = ROOT) -> str:
    """Check that the tree is clean, the version is not released yet, and users can read what changed.

    Returns
    -------
    str : the tag of this release, ``sglang-fl-nvidia-v0.2.1``

    Raises
    ------
    ReleaseError : one of these does not hold
    """
    changed = _run("git", "status", "--porcelain", "--", package, cwd=root)
    if changed:
        raise ReleaseError(f"the tree is not clean:\n{changed}")
    version = version_of(package)
    tag = f"{package.name}-v{version}"
    there = _run("git", "rev-parse", "HEAD", cwd=root).strip()
    is_tagged = bool(_run("git", "tag", "--list", tag, cwd=root).strip())
    if is_tagged and _run("git", "rev-list", "-n", "1", tag, cwd=root).strip() != there:
        raise ReleaseError(f"{tag} is released already: raise {package.name}'s version")
    changelog = (package / "CHANGELOG.md").read_text(encoding="utf-8")
    fragments = sorted((package / "changelog.d").glob("*.md"))
    if not fragments and f"\n## {version} " not in changelog:
        raise ReleaseError(f"{package.name}: no fragment in changelog.d, and no section for {version}")
    return tag


def changes_of(package: Path) -> str:
    """Return the section of the changelog that the fragments make."""
    if not list((package / "changelog.d").glob("*.md")):
        return "from CHANGELOG.md: its section is written already"
    return _run("towncrier", "build", "--draft", "--version", version_of(package), cwd=package)


def build_twice(package: Path, into: Path) -> list[Path]:
    """Build wheel and sdist twice, from copies of the package, and compare the bits.

    Raises
    ------
    ReleaseError : the two differ
    """
    epoch = _run("git", "log", "-1", "--format=%ct", "--", package).strip() or str(EARLIEST)
    hashes = []
    for number in ("one", "two"):
        source = Path(tempfile.mkdtemp()) / package.name
        export(package, source)
        out = into / number
        _run(
            sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source, SOURCE_DATE_EPOCH=epoch
        )
        hashes.append({file.name: _sha256(file) for file in sorted(out.iterdir())})
    if hashes[0] != hashes[1]:
        raise ReleaseError(f"two builds differ: {hashes[0]} and {hashes[1]}")
    return sorted((into / "one").iterdir())


def export(package: Path, into: Path, reference: str = "HEAD", root: Path = ROOT) -> None:
    """Write the files that git knows of the package, as they are in a commit or at a tag."""
    into.mkdir(parents=True)
    archive = into.parent / "source.tar"
    tree = f"{reference}:{package.relative_to(root)}"
    _run("git", "archive", "--format=tar", "-o", archive, tree, cwd=root)
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="data")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def wheel_faults(wheel: Path, package: Path) -> Iterator[str]:
    """Say what is in a wheel that should not be, and what is not in it that should."""
    (source,) = (package / "src").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        members = set(archive.namelist())
    files = (path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    expected = {str(path.relative_to(package / "src")) for path in files}
    metadata = {member for member in members if ".dist-info/" in member}
    yield from (f"{name} is missing" for name in sorted(expected - members))
    yield from (f"{name} does not belong there" for name in sorted(members - expected - metadata))
    if not any(member.endswith("/licenses/LICENSE") for member in metadata):
        yield "the licence is missing"


def metadata_of(wheel: Path) -> Message:
    """Return what a wheel says of itself: name, version, licence, requirements."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(member for member in archive.namelist() if member.endswith(".dist-info/METADATA"))
        return email.parser.HeaderParser().parsestr(archive.read(name).decode())


def bill_of_materials(wheel: Path) -> dict[str, object]:
    """Return an SBOM in CycloneDX form: what the wheel is, and what it requires."""
    headers = metadata_of(wheel)
    needs = headers.get_all("Requires-Dist") or []
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "name": headers["Name"],
                "version": headers["Version"],
                "licenses": [{"license": {"id": headers["License-Expression"]}}],
                "hashes": [{"alg": "SHA-256", "content": _sha256(wheel)}],
            }
        },
        "components": [_component(need) for need in needs],
    }


def _component(need: str) -> dict[str, object]:
    """Return a requirement as a component: its range of versions is what a wheel can tell."""
    requirement, _, marker = need.partition(";")
    found = re.match(r"[\w.-]+", requirement)
    name = found[0] if found else requirement
    properties = [{"name": "requires", "value": requirement.removeprefix(name).strip() or "any"}]
    if marker:
        properties.append({"name": "where", "value": marker.strip()})
    return {"type": "library", "name": name, "properties": properties}


def environment_with(wheels: list[Path], folder: Path) -> Path:
    """Make an environment with these wheels; third-party packages are those of this environment.

    Returns
    -------
    Path : its interpreter
    """
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    if wheels:
        _run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", *wheels)
    ours = [Path(path) for path in sys.path if path.endswith("site-packages")]
    lines = [str(path) for path in ours if not list(path.glob("sglang_fl*"))]
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "third_party.pth").write_text(
        "\n".join(f"import site; site.addsitedir({line!r})" for line in lines)
    )
    return python


def try_out(wheels: list[Path], package: Path, folder: Path) -> str:
    """Install the wheels in a fresh environment and run the package's tests and the kit there."""
    python = environment_with(wheels, folder)
    tests = package / "tests"
    kit = [*tests.glob("test_vendor.py"), *tests.glob("test_conformance.py")]
    return _run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *kit).strip().splitlines()[-1]


def release(name: str, into: Path) -> list[Path]:
    """Build and check a package; return the files to publish.

    Raises
    ------
    ReleaseError : why it cannot be released
    """
    package = ROOT / "packages" / f"sglang-fl-{name}"
    _say(f"{check_tree(package)}: the tree is clean")
    _say(f"changes:\n{changes_of(package)}")
    with tempfile.TemporaryDirectory() as folder:
        built = build_twice(package, Path(folder))
        published = [into / file.name for file in built]
        into.mkdir(parents=True, exist_ok=True)
        for file, target in zip(built, published, strict=True):
            target.write_bytes(file.read_bytes())
            _say(f"{file.name}: {_sha256(file)}, twice")
        _run("twine", "check", "--strict", *published)
        (wheel,) = (file for file in published if file.suffix == ".whl")
        faults = list(wheel_faults(wheel, package))
        if faults:
            raise ReleaseError(f"{wheel.name}: {'; '.join(faults)}")
        with zipfile.ZipFile(wheel) as archive:
            _say(f"{wheel.name} holds {len(archive.namelist())} files")
        core = [] if name == "core" else [build_wheel(ROOT / "packages/sglang-fl-core", Path(folder))]
        _say(f"in a fresh environment: {try_out([*core, wheel], package, Path(folder) / 'venv')}")
    materials = into / f"{wheel.stem}.cdx.json"
    materials.write_text(json.dumps(bill_of_materials(wheel), indent=2) + "\n", encoding="utf-8")
    return [*published, materials]


def build_wheel(source: Path, into: Path) -> Path:
    """Build a package's wheel in a folder that has none of it yet."""
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", into, source)
    (wheel,) = into.glob(f"{source.name.replace('-', '_')}-*.whl")
    return wheel


def main() -> int:
    """Release the named package into dist/; the exit status is 1 where it cannot be."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = sorted(path.name.removeprefix("sglang-fl-") for path in (ROOT / "packages").iterdir())
    parser.add_argument("package", choices=names)
    parser.add_argument("--into", type=Path, default=ROOT / "dist")
    arguments = parser.parse_args()
    try:
        for file in release(arguments.package, arguments.into):
            _say(f"to publish: {file}")
    except ReleaseError as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

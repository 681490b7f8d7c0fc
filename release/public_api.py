"""Compare core's public modules with the last release.

A breaking change needs a new ``CORE_API``; a name may go only if the last release had deprecated it.

``python -m release.public_api``; needs griffe. It reads source and imports nothing of it.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import griffe

__all__ = ["check", "main"]

ROOT = Path(__file__).parents[1]
SOURCE = "packages/sglang-fl-core/src"
TAGS = "sglang-fl-core-v*"
PACKAGE = "sglang_fl"
#: The files of the kit that vendor packages import.
KIT = ("suite", "simulated")
PUBLIC = ("vendor", "ops", "errors", "conformance", "platform")
_read: dict[str, dict[str, griffe.Module]] = {}


@dataclass(frozen=True)
class Break:
    """What a package written for the last release would trip over.

    Parameters
    ----------
    text : what it is
    is_gone : a name that is no longer there, and was not deprecated
    """

    text: str
    is_gone: bool

    def __str__(self) -> str:
        return f"  {self.text}"


def last_tag(root: Path) -> str | None:
    """Return the newest release tag of core, or None."""
    command = ["git", "tag", "--list", TAGS, "--sort=-version:refname"]
    tags = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split()
    return tags[0] if tags else None


def check(root: Path) -> tuple[int, str]:
    """Compare the working tree with the last release.

    Returns
    -------
    (int, str) : the exit status, and what to tell
    """
    tag = last_tag(root)
    if tag is None:
        return 0, f"public API: there is no tag {TAGS} yet, so there is nothing to compare with"
    old, new = _released(root, tag), _modules(root, None)
    breaks = [broken for name in sorted(old) for broken in _breaks(name, old[name], new.get(name))]
    if not breaks:
        return 0, f"public API: nothing is broken since {tag}"
    unannounced = [str(broken) for broken in breaks if broken.is_gone]
    if unannounced:
        advice = "A name works and warns for one version first: mark it with typing_extensions.deprecated."
        return 1, "\n".join([f"public API: {tag} had not deprecated these:", *unannounced, advice])
    before, now = (_core_api(modules["vendor"]) for modules in (old, new))
    told = [str(broken) for broken in breaks]
    if now > before:
        return 0, "\n".join([f"public API: broken since {tag}, and CORE_API is now {now}:", *told])
    advice = f"Keep them (see docs/stability.md), or raise CORE_API from {before}."
    return 1, "\n".join([f"public API: these break packages written for {tag}:", *told, advice])


def _released(root: Path, tag: str) -> dict[str, griffe.Module]:
    """Return the modules at a tag; what git knows by the same tree is read once, whatever its repository."""
    command = ["git", "rev-parse", f"{tag}:{SOURCE}"]
    tree = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    if tree not in _read:
        _read[tree] = _modules(root, tag)
    return _read[tree]


def _modules(root: Path, tag: str | None) -> dict[str, griffe.Module]:
    """Load the public modules and the contracts of all ops, at a tag or as they are now."""
    if tag is None:
        package = griffe.load(PACKAGE, search_paths=[root / SOURCE], allow_inspection=False)
    else:
        package = griffe.load_git(PACKAGE, ref=tag, repo=root, search_paths=[SOURCE], allow_inspection=False)
    assert isinstance(package, griffe.Module)
    contracts = [f"ops.{name}" for name, module in package["ops"].modules.items() if _is_public(module)]
    return {name: package[name] for name in (*PUBLIC, *contracts) if name in package.modules or "." in name}


def _breaks(name: str, old: griffe.Module, new: griffe.Module | None) -> Iterator[Break]:
    """Yield what a package that uses the old module would trip over."""
    if new is None:
        yield Break(f"{PACKAGE}.{name}: the module is gone", is_gone=False)
        return
    for breakage in griffe.find_breaking_changes(old, new):
        is_gone = breakage.kind is griffe.BreakageKind.OBJECT_REMOVED
        may_go = is_gone and (_was_deprecated(breakage.obj) or _has_moved(breakage.obj, new))
        if not _is_core_api(breakage) and not may_go and not _is_internal(breakage.obj):
            yield Break(breakage.explain(griffe.ExplanationStyle.ONE_LINE), is_gone)


def _was_deprecated(obj: griffe.Object) -> bool:
    decorators = getattr(obj, "decorators", ())
    return any(decorator.callable_path.rpartition(".")[2] == "deprecated" for decorator in decorators)


def _is_public(module: griffe.Object) -> bool:
    """Whether a file below a public module is public: an op's, or one with names that its package exports."""
    return "OP" in module.members or bool(_exported(module))


def _exported(module: griffe.Object) -> set[str]:
    """Return the names of a file that its package exports; all else in the file may change."""
    package = module.parent
    return {str(name) for name in module.exports or ()} & {
        str(name) for name in (package and package.exports) or ()
    }


def _is_internal(obj: griffe.Object) -> bool:
    """Whether it lies in a file of the kit that no vendor package imports (``docs/stability.md``)."""
    module = obj.module
    is_of_kit = module.path.startswith(f"{PACKAGE}.conformance.")
    return is_of_kit and module.name not in KIT and not _exported(module)


def _has_moved(obj: griffe.Object, new: griffe.Module) -> bool:
    """Whether a file has gone whose public names its package still has: those are what one imports."""
    if not obj.is_module or not obj.exports or "OP" in obj.members:
        return False
    return all(name in new.members for name in _exported(obj))


def _is_core_api(breakage: griffe.Breakage) -> bool:
    return breakage.obj.name in ("CORE_API", "OLDEST_CORE_API", "OPS", "OP")


def _core_api(vendor: griffe.Module) -> int:
    return int(str(vendor["CORE_API"].value))


def main() -> int:
    """Print the comparison; the exit status is 1 where something breaks."""
    status, text = check(ROOT)
    sys.stdout.write(text + "\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main())

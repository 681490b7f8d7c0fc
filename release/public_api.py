"""Compare core's public modules with the last release: a breaking change needs a new ``CORE_API``.

``python -m release.public_api``; needs griffe. It reads source and imports nothing of it.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

__all__ = ["check", "main"]

ROOT = Path(__file__).parents[1]
SOURCE = "packages/sglang-fl-core/src"
TAGS = "sglang-fl-core-v*"
PACKAGE = "sglang_fl"
PUBLIC = ("vendor", "ops", "errors", "conformance", "platform")


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
    old, new = _modules(root, tag), _modules(root, None)
    breaks = [line for name in sorted(old) for line in _breaks(name, old[name], new.get(name))]
    before, now = (_core_api(modules["vendor"]) for modules in (old, new))
    if not breaks:
        return 0, f"public API: nothing is broken since {tag}"
    if now > before:
        return 0, "\n".join([f"public API: broken since {tag}, and CORE_API is now {now}:", *breaks])
    advice = f"Keep them (see docs/stability.md), or raise CORE_API from {before}."
    return 1, "\n".join([f"public API: these break packages written for {tag}:", *breaks, advice])


def _modules(root: Path, tag: str | None) -> dict[str, griffe.Module]:
    """Load the public modules and the contracts of all ops, at a tag or as they are now."""
    if tag is None:
        package = griffe.load(PACKAGE, search_paths=[root / SOURCE], allow_inspection=False)
    else:
        package = griffe.load_git(PACKAGE, ref=tag, repo=root, search_paths=[SOURCE], allow_inspection=False)
    assert isinstance(package, griffe.Module)
    contracts = [f"ops.{name}" for name in package["ops"].modules]
    return {name: package[name] for name in (*PUBLIC, *contracts) if name in package.modules or "." in name}


def _breaks(name: str, old: griffe.Module, new: griffe.Module | None) -> Iterator[str]:
    """Tell what a package that uses the old module would trip over."""
    if new is None:
        yield f"  {PACKAGE}.{name}: the module is gone"
        return
    for breakage in griffe.find_breaking_changes(old, new):
        explanation = breakage.explain(griffe.ExplanationStyle.ONE_LINE)
        if not _is_core_api(breakage):
            yield f"  {explanation}"


def _is_core_api(breakage: griffe.Breakage) -> bool:
    return breakage.obj.name in ("CORE_API", "OLDEST_CORE_API", "OPS")


def _core_api(vendor: griffe.Module) -> int:
    return int(str(vendor["CORE_API"].value))


def main() -> int:
    """Print the comparison; the exit status is 1 where something breaks."""
    status, text = check(ROOT)
    sys.stdout.write(text + "\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main())

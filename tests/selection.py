"""Which tests a change can reach, for ``nox -s changed``; the rule is in CONTRIBUTING.md.

``python -m tests.selection`` prints for each session a line: its name and the arguments of pytest. Files are
chosen by what they import directly and by their names: what a change does to more distant code is found by
all sessions, not here.
"""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = ["changed_files", "select"]

ROOT = Path(__file__).parents[1]
CORE = "packages/sglang-fl-core"
LAYOUT = "tests/test_layout.py"
#: What shows that an engine starts and generates; run for each change of core.
ENGINE = "tests/engine/test_offline_engine.py::test_references_generate_what_sglang_generates"
#: Files with a test for each op whose parameter is not the catalogue of ops.
BY_OP = (f"{CORE}/tests/test_adapters.py", "tests/engine/test_layers.py")
#: Folders whose Python files bear the names of ops.
OF_OPS = ("/sglang_fl/ops/", "/sglang_fl/flagos/", "/sglang_adapter/layers/", "tests/ops/")
#: The sessions of test files, by how their paths begin; the first that fits.
SESSIONS = {
    f"{CORE}/tests/": "tests",
    "packages/sglang-fl-nvidia/tests/": "nvidia",
    "packages/sglang-fl-ascend/tests/": "ascend",
    "packages/sglang-fl-mlu/tests/": "mlu",
    "tests/simulated/test_ascend.py": "ascend",
    "tests/simulated/": "mlu",
    "tests/engine/": "engine",
    "tests/releases/": "releases",
    "tests/install/": "install",
    "tests/python/": "python",
    "tests/release/test_public_api.py": "api",
    "tests/docs/": "docs",
    "tests/gpu/": "",  # needs a GPU
    "tests/": "tests",
}


def changed_files() -> list[str]:
    """Return what differs from the main branch, committed or not, and what git does not know yet."""
    base = next(
        (name for name in ("main", "origin/main") if git("rev-parse", "-q", "--verify", name)), "HEAD"
    )
    fork = git("merge-base", base, "HEAD") or ["HEAD"]
    return [*git("diff", "--name-only", fork[0]), *git("ls-files", "--others", "--exclude-standard")]


def git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


def select(changed: Iterable[str]) -> dict[str, list[str]]:
    """Return for each session the arguments of pytest.

    Parameters
    ----------
    changed : paths relative to the repository
    """
    changed = [*changed]
    chosen = {LAYOUT} if changed else set()
    ops = {Path(path).stem for path in changed if is_of_an_op(path)}
    for path in changed:
        if path.startswith(f"{CORE}/src/"):
            chosen.add(ENGINE)
        if not is_of_an_op(path):
            chosen |= reached_by(path)
    by_op = of_every_op() if ops else set()
    selected: dict[str, list[str]] = {}
    for test in sorted(chosen | by_op):
        selected.setdefault(session_of(test), []).append(test)
    for arguments in selected.values():
        if ops and {*arguments} <= by_op | {LAYOUT, ENGINE}:  # nothing else is there to be left out
            arguments += ["-k", " or ".join([*sorted(ops), "test_layout", "references_generate"])]
    selected.pop("", None)
    return selected


def is_of_an_op(path: str) -> bool:
    """Whether a file is that of one op: one of its name holds a contract."""
    contract = ROOT / CORE / "src/sglang_fl/ops" / Path(path).name
    is_there = path.endswith(".py") and any(folder in path for folder in OF_OPS) and contract.exists()
    return is_there and "\nOP = Op(" in contract.read_text(encoding="utf-8")


def of_every_op() -> set[str]:
    """Return the test files that have a test for each op."""
    by_catalogue = re.compile(r"parametrize\(.*\b(OPS|NATIVE|DRAWN)\b")
    places = [*ROOT.glob("tests/test_*.py"), *ROOT.glob("tests/engine/test_*.py")]
    places += (ROOT / CORE / "tests").glob("test_*.py")
    found = {str(path.relative_to(ROOT)) for path in places if by_catalogue.search(path.read_text("utf-8"))}
    return {*BY_OP, *found} - {LAYOUT}


def reached_by(path: str) -> set[str]:
    """Return the test files that a changed file can reach."""
    package = "/".join(path.split("/")[:2])
    if package.startswith("packages/") and package != CORE:
        return {str(file.relative_to(ROOT)) for file in (ROOT / package / "tests").glob("test_*.py")}
    if not path.endswith(".py"):
        return set()
    if path.startswith("tests/ops/"):  # what the files of ops there share
        return of_every_op()
    if Path(path).name.startswith("test_"):
        return {path} if (ROOT / path).exists() else set()
    module = module_of(path)
    return {str(test.relative_to(ROOT)) for test in all_tests() if is_reached(test, module)}


def all_tests() -> list[Path]:
    return [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("packages/*/tests/test_*.py")]


def module_of(path: str) -> str:
    """Return the dotted name under which tests import a file."""
    _, source, inner = path.partition("/tests/" if path.startswith(f"{CORE}/tests/") else "/src/")
    parts = (inner if source else path).removesuffix(".py").removesuffix("/__init__").split("/")
    return ".".join(parts)


def is_reached(test: Path, module: str) -> bool:
    """Whether a test file imports a module, or is named after it or after its room."""
    named = {f"test_{part}" for part in module.split(".")}
    return any(test.stem == name or test.stem.startswith(f"{name}_") for name in named) or any(
        name == module or name.startswith(f"{module}.") for name in imported(test)
    )


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, and the names that it takes from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def session_of(test: str) -> str:
    """Return the session in which a test file runs; empty: none that every machine has."""
    return next(session for begin, session in SESSIONS.items() if test.startswith(begin))


if __name__ == "__main__":
    for name, tests in select(changed_files()).items():
        sys.stdout.write(f"{name} {shlex.join(tests)}\n")

"""The source of each supported release of SGLang, as its wheel has it; nothing of it is imported."""

import ast
import functools
from collections.abc import Iterable
from pathlib import Path

from release.sglang_wheels import unpacked
from sglang_fl.sglang_adapter import releases

__all__ = ["RELEASES", "body", "package", "parsed", "source"]

RELEASES = [release.version for release in releases.RELEASES]


def package(release: str) -> Path:
    """Return the folder of the package ``sglang``."""
    return unpacked("sglang", release) / "sglang"


@functools.cache
def source(release: str, module: str) -> str:
    """Return the text of a module; empty where the release has none."""
    path = package(release).parent / (module.replace(".", "/") + ".py")
    return path.read_text() if path.exists() else ""


@functools.cache
def parsed(text: str) -> ast.Module:
    """Return the tree of a module, once for all targets in it and all releases that have it alike."""
    return ast.parse(text)


@functools.cache
def body(release: str, target: str) -> str | None:
    """Return the text of a function, of a method of a class, or of an imported name; None: there is none."""
    path, _, name = target.rpartition(".")
    text = source(release, path)
    if text:
        return found_in(ast.walk(parsed(text)), name, text)
    module, _, owner = path.rpartition(".")
    text = source(release, module)
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.ClassDef) and node.name == owner:
            return found_in(node.body, name, text)
    return None


def found_in(nodes: Iterable[ast.AST], name: str, text: str) -> str | None:
    """Return the text of the function, or of the import, of this name; None: there is none."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            # As ast.get_source_segment, which takes a tenth of a second to cut a long text into lines.
            return "\n".join(text.split("\n")[node.lineno - 1 : node.end_lineno])
        if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
            return ast.unparse(node)
    return None

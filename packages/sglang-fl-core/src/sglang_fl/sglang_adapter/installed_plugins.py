"""Which layers the installed kernel plugins take, read from their source: nothing of them is imported.

What a plugin decides while it runs is not seen here; the dispatch log tells it.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import util
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from sglang_fl.sglang_adapter.source import PLUGIN_METHOD

__all__ = ["Claim", "installed_claims"]

#: The entry points of SGLang through which a plugin is called.
GROUPS = ("sglang.srt.plugins", "sglang.srt.platforms")
WHOLE_STEPS = "whole steps of a model"
AT_RUN_TIME = "classes that its code names while it runs"
_REGISTER = "register_oot_forward"
_CONTRACTS = "sglang.kernels.plugin_kernels"


@dataclass(frozen=True, order=True)
class Claim:
    """What a plugin takes from SGLang's own kernels.

    Parameters
    ----------
    plugin : its distribution
    what : the name of a layer class, or what else it takes
    how : the way in that it uses
    """

    plugin: str
    what: str
    how: str


def installed_claims() -> list[Claim]:
    """Return what the installed plugins of others take, by plugin and class."""
    points = [point for group in GROUPS for point in entry_points(group=group)]
    foreign = {_package(point): point for point in points if _package(point) != "sglang_fl"}
    return sorted({claim for point in foreign.values() for claim in _claims_of(point)})


def _package(point: EntryPoint) -> str:
    return point.module.partition(".")[0]


def _claims_of(point: EntryPoint) -> Iterator[Claim]:
    plugin = point.dist.name if point.dist else _package(point)
    for path in _files(_package(point)):
        text = path.read_text(encoding="utf-8", errors="replace")
        if any(mark in text for mark in (_REGISTER, PLUGIN_METHOD, _CONTRACTS)):
            yield from (Claim(plugin, what, how) for what, how in _read(text))


def _files(package: str) -> list[Path]:
    """Return the source files of a package; none where it is not Python source."""
    spec = util.find_spec(package)  # a package at the top is found without importing it
    if spec is None:
        return []
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    alone = [Path(spec.origin)] if spec.origin and not folders else []
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))] + [
        path for path in alone if path.suffix == ".py"
    ]


def _read(text: str) -> Iterator[tuple[str, str]]:
    """Yield what a source file takes, and how."""
    try:
        tree = ast.parse(text)
    except SyntaxError:  # written for another Python; what it takes cannot be known
        yield AT_RUN_TIME, "its source cannot be read"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(f".{_REGISTER}"):
            yield _registered_class(node), _REGISTER
        elif isinstance(node, ast.ClassDef) and PLUGIN_METHOD in _methods(node):
            yield node.name, PLUGIN_METHOD
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_CONTRACTS):
            yield WHOLE_STEPS, node.module or ""


def _registered_class(call: ast.Call) -> str:
    by_name = {keyword.arg: keyword.value for keyword in call.keywords}
    given = call.args[0] if call.args else by_name.get("op_cls")
    name = ast.unparse(given).rpartition(".")[2] if given is not None else ""
    # A name in lower case is a variable, in a loop over classes or the like.
    return name if name.isidentifier() and name[0].isupper() else AT_RUN_TIME


def _methods(cls: ast.ClassDef) -> set[str]:
    return {node.name for node in cls.body if isinstance(node, ast.FunctionDef)}

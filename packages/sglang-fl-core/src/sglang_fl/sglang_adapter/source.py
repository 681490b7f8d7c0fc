"""The fused layer classes of an SGLang, read from its source: nothing of it is imported.

A class counts where its bases, followed by name through SGLang's own modules, imports and re-exports,
lead to the base class of the fused layers. What is made while the program runs is not seen.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

__all__ = ["PLUGIN_METHOD", "ROOTS", "FusedClass", "fused_classes"]

#: The base classes of all fused layers; which of them is the real one depends on the release.
ROOTS = (
    "sglang.kernels.fused_op:BaseFusedOp",
    "sglang.srt.layers.utils.multi_platform:MultiPlatformOp",
)

#: The method of a class that lets a kernel plugin run it.
PLUGIN_METHOD = "forward_plugin"

# Parsing all of SGLang takes a quarter of a minute, so names are looked for in the text first.
_CLASS = re.compile(r"^[ \t]*class[ \t]+(\w+)[ \t]*\(([^:]*)\)[ \t]*:", re.MULTILINE)
_RENAMED = re.compile(r" as (\w+)")
_ASSIGNED = re.compile(r"^(\w+) = (\w+)$", re.MULTILINE)
_WORD = re.compile(r"\w+")
_LAST_WORD = re.compile(r"\w+$")

#: Folders of the package that no server process of SGLang runs layers from.
LEFT_OUT = {
    "multimodal_gen": "the diffusion server: processes of its own, which load plugins of another group",
    "test": "SGLang's own tests",
}


@dataclass(frozen=True)
class FusedClass:
    """One class as its source shows it.

    Parameters
    ----------
    path : ``module:Class``
    ancestors : the class itself and SGLang's classes above it, in Python's method resolution order
    forwards : what each of these defines itself whose name begins with ``forward``
    """

    path: str
    ancestors: tuple[str, ...]
    forwards: dict[str, frozenset[str]]


def fused_classes(package: Path) -> list[FusedClass]:
    """Return the fused layer classes of an SGLang, sorted by path.

    Parameters
    ----------
    package : the folder ``sglang``
    """
    source = _Source(package)
    found = {cls.path: cls for name in source.suspects() for cls in source.module(name).classes.values()}
    fused = []
    for path in sorted(found):
        ancestors = tuple(source.ancestors(path))
        if path not in ROOTS and any(root in ancestors for root in ROOTS):
            forwards = {above: source.class_at(above).forwards for above in ancestors}
            fused.append(FusedClass(path, ancestors, forwards))
    return fused


@dataclass(frozen=True)
class _Class:
    path: str
    bases: tuple[str, ...]  # as written: ``RMSNorm``, ``layernorm.RMSNorm``
    forwards: frozenset[str]


@dataclass(frozen=True)
class _Module:
    classes: dict[str, _Class]
    imports: dict[str, str]  # a name in the module -> the dotted name that it stands for


class _Source:
    """The modules under one folder, parsed where something asks for them."""

    def __init__(self, package: Path) -> None:
        self._package = package
        self._modules: dict[str, _Module] = {}
        self._ancestors: dict[str, list[str]] = {}

    @cached_property
    def _files(self) -> dict[str, Path]:
        folders = [path for path in self._package.iterdir() if path.name not in LEFT_OUT]
        files = [path for folder in folders if folder.is_dir() for path in folder.rglob("*.py")]
        return {self._name(path): path for path in files}

    def _name(self, path: Path) -> str:
        parts = path.relative_to(self._package.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def suspects(self) -> list[str]:
        """Return the modules with a class whose bases may, by their bare names, lead to a root."""
        derived: dict[str, set[str]] = {}  # a name -> the names of classes that have it as a base
        defined: dict[str, set[str]] = {}  # the name of a class -> the modules that define one
        for module, path in self._files.items():
            text = path.read_text(errors="replace")
            for name, bases in _CLASS.findall(text):
                defined.setdefault(name, set()).add(module)
                for base in _WORD.findall(bases):
                    derived.setdefault(base, set()).add(name)
            for old, new in _aliases(text):
                derived.setdefault(old, set()).add(new)
        waiting = [root.partition(":")[2] for root in ROOTS]
        seen = set(waiting)
        while waiting:
            below = derived.get(waiting.pop(), set()) - seen
            seen |= below
            waiting += below
        return sorted(module for name in seen for module in defined.get(name, ()))

    def module(self, name: str) -> _Module:
        """Return a module; one that is not SGLang's has nothing in it."""
        if name not in self._modules:
            path = self._files.get(name)
            is_package = path is not None and path.name == "__init__.py"
            self._modules[name] = _read(name, path.read_bytes() if path else b"", is_package)
        return self._modules[name]

    def class_at(self, path: str) -> _Class:
        """Return the class at ``module:Class``."""
        module, _, name = path.partition(":")
        return self.module(module).classes[name]

    def resolve(self, module: str, name: str) -> str | None:
        """Return ``module:Class`` for a name as a module uses it, or None for what is not SGLang's."""
        seen = set()
        while (module, name) not in seen:
            if name in self.module(module).classes:
                return f"{module}:{name}"
            seen.add((module, name))
            head, dot, rest = name.partition(".")
            module, name = self._split(self.module(module).imports.get(head, "") + dot + rest)
        return None

    def _split(self, dotted: str) -> tuple[str, str]:
        """Split a dotted name into the longest module in it and the rest."""
        parts = dotted.split(".")
        for length in range(len(parts), 0, -1):
            module = ".".join(parts[:length])
            if module in self._files:
                return module, ".".join(parts[length:])
        return "", ""

    def ancestors(self, path: str) -> list[str]:
        """Return the class and those above it in method resolution order, as far as they are SGLang's."""
        if path not in self._ancestors:
            self._ancestors[path] = [path]  # ends a circle, which only a wrong reading can make
            module = path.partition(":")[0]
            bases = [self.resolve(module, base) for base in self.class_at(path).bases]
            known = [base for base in bases if base is not None and base != path]
            self._ancestors[path] = [path, *_merge([*map(self.ancestors, known), known])]
        return self._ancestors[path]


def _read(name: str, text: bytes, is_package: bool) -> _Module:
    tree = ast.parse(text)
    classes = {cls.path.partition(":")[2]: cls for cls in _classes(tree, name)}
    return _Module(classes, dict(_imports(tree, name, is_package)))


def _aliases(text: str) -> Iterator[tuple[str, str]]:
    """Yield each name that another one stands for, by ``import ... as`` or ``new = old``."""
    for found in _RENAMED.finditer(text):
        old = _LAST_WORD.search(text, max(0, found.start() - 80), found.start())
        if old:
            yield old[0], found[1]
    yield from ((old, new) for new, old in _ASSIGNED.findall(text))


def _merge(sequences: list[list[str]]) -> list[str]:
    """Merge the orders of a class's bases as Python does (C3)."""
    merged: list[str] = []
    rest = [list(sequence) for sequence in sequences if sequence]
    while rest:
        head = next(
            (s[0] for s in rest if not any(s[0] in other[1:] for other in rest)),
            rest[0][0],  # no such order: the source cannot be imported, or was read wrongly
        )
        merged.append(head)
        rest = [kept for s in rest if (kept := [name for name in s if name != head])]
    return merged


def _classes(tree: ast.Module, module: str) -> Iterator[_Class]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = tuple(ast.unparse(base).partition("[")[0] for base in node.bases)
            forwards = frozenset(name for name in _members(node) if name.startswith("forward"))
            yield _Class(f"{module}:{node.name}", bases, forwards)


def _members(node: ast.ClassDef | ast.If) -> Iterator[str]:
    """Yield what a class body defines, in either branch of an ``if`` too."""
    for statement in node.body + (node.orelse if isinstance(node, ast.If) else []):
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            yield statement.name
        elif isinstance(statement, ast.Assign):
            yield from (target.id for target in statement.targets if isinstance(target, ast.Name))
        elif isinstance(statement, ast.If):
            yield from _members(statement)


def _imports(tree: ast.Module, module: str, is_package: bool) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            source = _absolute(node, module, is_package)
            yield from ((name.asname or name.name, f"{source}.{name.name}") for name in node.names)
        elif isinstance(node, ast.Import):
            for name in node.names:
                yield (name.asname, name.name) if name.asname else (name.name.partition(".")[0],) * 2
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name | ast.Attribute):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, f"{module}.{ast.unparse(node.value)}"


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, *filter(None, [node.module])])

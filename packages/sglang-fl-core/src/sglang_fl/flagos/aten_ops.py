"""The ATen ops that FlagGems has kernels for, read from its source: FlagGems is not imported.

Its import needs a device, which a launcher, a laptop or CI need not have.
"""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from sglang_fl.errors import VendorError
from sglang_fl.vendor import AtenOp

__all__ = ["ops"]

#: The tuple in ``flag_gems/__init__.py`` of (ATen op, function, conditions...), one for each kernel.
TABLE = "_FULL_CONFIG"


def ops() -> tuple[AtenOp, ...]:
    """Return the ops of the installed FlagGems, in its order.

    Raises
    ------
    VendorError : FlagGems is not installed, or its table is not where it is expected
    """
    spec = importlib.util.find_spec("flag_gems")
    if spec is None or spec.origin is None:
        raise VendorError("flag_gems is not installed")
    found = tuple(_entries(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))))
    if not found:
        raise VendorError(f"{spec.origin} has no table {TABLE} of ATen ops that can be read")
    return found


def _entries(tree: ast.Module) -> Iterator[AtenOp]:
    for entry in _table(tree):
        match entry:
            case ast.Tuple(elts=[ast.Constant(value=str(overload)), ast.Name(id=name), *_]):
                yield AtenOp(overload, name)


def _table(tree: ast.Module) -> list[ast.expr]:
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Tuple(elts=entries)) if name == TABLE:
                return entries
    return []

"""Check a target by its source alone, on a machine that lacks the kernel library it imports."""

import ast
import importlib.util
import inspect
from pathlib import Path

from sglang_fl.ops import OPS
from sglang_fl.vendor import OpImpl

__all__ = ["check_declared"]


def check_declared(impl: OpImpl) -> list[str]:
    """Say what is wrong with an implementation's target, without importing its module.

    Returns
    -------
    list of str : no such module, no such function, or parameters that are not the contract's
    """
    module_name, _, function = impl.target.partition(":")
    spec = importlib.util.find_spec(module_name)
    if spec is None or spec.origin is None:
        return [f"{impl.target}: there is no module {module_name}"]
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    if not found:
        return [f"{impl.target}: {module_name} defines no function {function}"]
    given, expected = _plain(found[0].args), _plain(_arguments_of(OPS[impl.op].signature))
    return [] if given == expected else [f"{impl.target}: takes ({given}), the contract says ({expected})"]


def _arguments_of(signature: inspect.Signature) -> ast.arguments:
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    source = ast.parse(f"def f{inspect.Signature(bare)}: pass").body[0]
    assert isinstance(source, ast.FunctionDef)
    return source.args


def _plain(arguments: ast.arguments) -> str:
    """Return names, kinds and defaults without annotations."""
    for node in ast.walk(arguments):
        if isinstance(node, ast.arg):
            node.annotation = None
    return ast.unparse(arguments)

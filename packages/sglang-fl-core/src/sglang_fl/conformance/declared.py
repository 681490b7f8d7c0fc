"""Check a target by its source alone, on a machine that lacks the kernel library it imports."""

import ast
import inspect
from collections.abc import Collection

from sglang_fl.errors import VendorError
from sglang_fl.ops import OPS
from sglang_fl.vendor import OpImpl
from sglang_fl.vendor.targets import module_source

__all__ = ["check_declared"]


def check_declared(impl: OpImpl) -> list[str]:
    """Say what is wrong with an implementation's target, without importing its module.

    Returns
    -------
    list of str : no such module, no such function, or parameters that are not the contract's
    """
    module_name, _, function = impl.target.partition(":")
    try:
        tree = module_source(module_name)
    except VendorError as error:
        return [f"{impl.target}: {error}"]
    if tree is None:
        return [f"{impl.target}: {module_name} has no source in Python"]
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    if not found:
        return [f"{impl.target}: {module_name} defines no function {function}"]
    contract, named = OPS[impl.op].signature, {argument.arg for argument in found[0].args.kwonlyargs}
    given = _plain(found[0].args)
    if given == _plain(_arguments_of(contract, named)):
        return []
    return [f"{impl.target}: takes ({given}), the contract says ({_plain(_arguments_of(contract))})"]


def _arguments_of(signature: inspect.Signature, options: Collection[str] | None = None) -> ast.arguments:
    """Return a contract's arguments, with those of its options that a kernel names, or with all."""
    bare = [
        p.replace(annotation=inspect.Parameter.empty)
        for p in signature.parameters.values()
        if p.kind is not p.KEYWORD_ONLY or options is None or p.name in options
    ]
    source = ast.parse(f"def f{inspect.Signature(bare)}: pass").body[0]
    assert isinstance(source, ast.FunctionDef)
    return source.args


def _plain(arguments: ast.arguments) -> str:
    """Return names, kinds and defaults without annotations."""
    for node in ast.walk(arguments):
        if isinstance(node, ast.arg):
            node.annotation = None
    return ast.unparse(arguments)

"""Check a target by its source alone, on a machine that lacks the kernel library it imports."""

import ast
import importlib.util
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
    declared = [argument.arg for argument in found[0].args.args]
    expected = list(OPS[impl.op].signature.parameters)
    if declared != expected:
        return [f"{impl.target}: takes ({', '.join(declared)}), the contract says ({', '.join(expected)})"]
    return []

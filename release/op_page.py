"""What of ``docs/ops.md`` is written from the ops, their adapters and the FlagGems calls."""

import ast
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

from sglang_fl.flagos.not_fit import NOT_FIT
from sglang_fl.ops import OPS, Bound, Op
from sglang_fl.sglang_adapter import layers
from sglang_fl.sglang_adapter.layers import ADAPTERS

__all__ = ["blocks", "references"]

#: Of a line of the page.
WIDTH = 118


def blocks() -> dict[str, str]:
    """Return the table of all ops and their sections, by the marks between which they stand."""
    return {"ops": _table(), "sections": "\n".join(_section(op) for op in OPS.values())}


def references() -> dict[str, str]:
    """Return what makes the site print the signature and the docstring of each op's reference."""
    lines = [f".. autofunction:: {op.reference.__module__}.{op}" for op in OPS.values()]
    return {"references": "\n".join(["```{eval-rst}", *lines, "```"]) + "\n"}


def _table() -> str:
    if wrong := [op for op in NOT_FIT if op not in OPS or _flag_gems_file(op)]:
        raise SystemExit(f"flagos/not_fit.py: {', '.join(wrong)} has a kernel in flagos/, or is no op")
    heads = ("op", "error allowed, 16 bit", "error allowed, float32", "may write", "FlagGems 5.0.2")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for op in OPS.values():
        allowed = (_allowed(op, dtype) for dtype in (torch.bfloat16, torch.float32))
        rows.append(f"| [`{op}`](#{op}) | {' | '.join(allowed)} | {_writes(op)} | {_flag_gems(op.name)} |")
    return "\n".join(rows) + "\n"


def _allowed(op: Op, dtype: torch.dtype) -> str:
    """Return the bound in words, with that of the cases that round more often."""
    usual, most = (bound.of(dtype) for bound in (op.bound, _widest(op, dtype)))
    cell = f"{usual:g}" if most == usual else f"{usual:g}; with some options {most:g}"
    return cell if _returns(op, dtype) is dtype else f"{cell}, of float32 results"


def _widest(op: Op, dtype: torch.dtype) -> Bound:
    bounds = [op.bound, *(case.bound for case in op.cases if case.bound)]
    return max(bounds, key=lambda bound: bound.of(dtype))


def _returns(op: Op, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the first result of the reference."""
    case = next(case for case in op.cases if not case.name.startswith("empty"))
    arguments = case.arguments(dtype)
    return op.results(op.reference(**arguments), arguments)[0].dtype


def _writes(op: Op) -> str:
    condition = f", if {_code(op.writes_if_given)} is given" if op.writes_if_given else ""
    writes = ", ".join(map(_code, op.writes)) + condition
    rows = (f"rows of {_code(name)}" if name in op.writes_rows else _code(name) for name in op.updates)
    updates = f"**updates** {', '.join(rows)}" if op.updates else ""
    return "; ".join(filter(None, (writes, updates))) or "nothing"


def _code(name: str) -> str:
    return f"`{name}`"


def _flag_gems(op: str) -> str:
    file = _flag_gems_file(op)
    if file is None:
        return f"not fit: {NOT_FIT[op]}" if op in NOT_FIT else "has none"
    said = _paragraphs(ast.get_docstring(ast.parse(file.read_text())))[0]
    return said.removeprefix(f"`{op}` by ").removesuffix(".")


def _flag_gems_file(op: str) -> Path | None:
    """Return the file that calls FlagGems' kernel; it is not imported, because FlagGems needs a device."""
    found = importlib.util.find_spec(f"sglang_fl.flagos.{op}")
    return Path(found.origin) if found and found.origin else None


def _section(op: Op) -> str:
    head = _paragraphs(_module(op).__doc__)[0]
    begin = f"The op `{op}`: "
    if not head.startswith(begin):
        raise SystemExit(f"ops/{op}.py: its docstring must begin with 'The op ``{op}``: ', what it computes")
    said = head.removeprefix(begin)
    paragraphs = [f"{said[0].upper()}{said[1:]}", *_layers(op)]
    if op.may_depend_on_batch:
        paragraphs.append("In batch-invariant mode the op is SGLang's.")
    if op.options:
        paragraphs.append(f"Options: {', '.join(map(_code, op.options))}.")
    wrap = functools.partial(textwrap.fill, width=WIDTH, break_on_hyphens=False, break_long_words=False)
    return "\n\n".join([f"## {op}", *map(wrap, paragraphs)]) + "\n"


def _module(op: Op) -> ModuleType:
    return importlib.import_module(op.reference.__module__)


def _layers(op: Op) -> Iterator[str]:
    """Yield what the adapters' file says of the layers that run the op, and of the calls left to SGLang."""
    what, *rest = _paragraphs(_adapters_file(op.name).__doc__)
    classes = [path.rpartition(":")[2] for path, found in ADAPTERS.items() if any(a.op is op for a in found)]
    further = [_code(cls) for cls in classes if _code(cls) not in what]
    word = "This one" if any("." in cls for cls in classes) else "Also"  # methods of an object, not classes
    yield what + (f" {word}: {', '.join(further)}." if further else "")
    first = next(name for name in OPS if _adapters_file(name) is _adapters_file(op.name))
    if first != op.name:
        yield f"The rest as for [`{first}`](#{first})."
        return
    for paragraph in rest:
        if not paragraph.startswith("SGLang: "):  # the two signatures
            yield paragraph.replace("Falls through: ", "Left to SGLang: ")


@functools.cache
def _adapters_file(op: str) -> ModuleType:
    """Return the module of ``layers/`` that has an adapter of the op and names it in its docstring."""
    for name in sorted(module.name for module in pkgutil.iter_modules(layers.__path__)):
        module = importlib.import_module(f"{layers.__name__}.{name}")
        ops = {adapter.op.name for adapter in getattr(module, "ADAPTERS", ()) if name != "adapter"}
        if op in ops and f"``{op}``" in (module.__doc__ or ""):
            return module
    raise SystemExit(f"sglang_adapter/layers: no file has an adapter of {op} and ``{op}`` in its docstring")


def _paragraphs(docstring: str | None) -> list[str]:
    """Return a docstring's paragraphs as Markdown, each in one line."""
    text = re.sub(r"``([^`]+)``", r"`\1`", inspect.cleandoc(docstring or ""))
    return [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]

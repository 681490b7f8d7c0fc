"""All that the tests know of an op stands in one file here, ``tests/ops/<op>.py``, as its ``SUBJECT``.

What several ops need lies in ``shared/``. Tests over all ops ask for the subject of each, so that a new op
is tested as soon as it has a file.
"""

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from sglang_fl.ops import Kernel

if TYPE_CHECKING:
    from torch import nn

    from tests.ops.shared.drawing import Drawn, Source

__all__ = ["Arguments", "Array", "Layers", "Subject", "like", "subject_of"]

Array = np.ndarray
#: Of a call, by name.
Arguments = dict[str, Any]
Layers = dict[str, tuple["nn.Module", tuple[Any, ...]]]


@dataclass(frozen=True)
class Subject:
    """What is known of an op beside its contract.

    Parameters
    ----------
    formula : the op in float64 on NumPy's arrays, written apart from the reference; it takes the contract's
        arguments and returns all results, those that the op updates in place last
    draw : makes one call of what hypothesis draws
    native : SGLang's own path in PyTorch, given the arguments of a call; it returns None where it cannot do
        what they ask for. A text says why SGLang has no such path
    layers : makes SGLang's layers that run the op, each with the arguments that its forward takes, by the
        name of the class; a comma and a word behind it say what is special. Left out where a layer returns
        no tensors, as ``TopK``, or cannot be called alone: it has a test of its own in ``tests/engine`` then
    wrong : kernels that are wrong in one way each, by the aspect of the conformance kit that must catch them:
        ``cases``, ``edges``, ``repeat`` or ``graph``
    """

    formula: Callable[..., tuple[Array, ...]] | None = None
    draw: Callable[["Source"], "Drawn"] | None = None
    native: Callable[[Arguments], Any] | str | None = None
    layers: Callable[[], "Layers"] = dict
    wrong: Mapping[str, tuple[Kernel, ...]] = field(default_factory=dict)


#: What a file without it lacks.
_MISSING = {
    "formula": "no formula, the op in float64",
    "draw": "no draw, which makes calls for hypothesis",
    "native": "no native, SGLang's own path in PyTorch, or the reason why it has none",
    "wrong": "no wrong kernels, which the conformance kit must catch",
}


@functools.cache
def subject_of(op: str) -> Subject:
    """Return the subject of an op.

    Raises
    ------
    LookupError : its file is missing, or lacks a part
    """
    path = f"tests/ops/{op}.py"
    if importlib.util.find_spec(f"tests.ops.{op}") is None:
        raise LookupError(f"{path}: there is no such file; docs/add-an-op.md says what it holds")
    subject = getattr(importlib.import_module(f"tests.ops.{op}"), "SUBJECT", None)
    if not isinstance(subject, Subject):
        raise LookupError(f"{path}: no SUBJECT")
    for part in fields(Subject):
        if part.name in _MISSING and not getattr(subject, part.name):
            raise LookupError(f"{path}: {_MISSING[part.name]}")
    return subject


def like(reference: Kernel) -> Callable[[Kernel], Kernel]:
    """Give a function of keywords the signature of a reference."""

    def mark(kernel: Kernel) -> Kernel:
        kernel.__signature__ = inspect.signature(reference)  # type: ignore[attr-defined]
        return kernel

    return mark

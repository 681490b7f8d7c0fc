"""How far a reference is from the formula of its op."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang_fl.ops import Bound, Op
from sglang_fl.ops.compare import error_in_units
from tests.ops.subject import subject_of

__all__ = ["as_numpy", "as_tuple", "errors"]


def as_numpy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return (value.double() if value.is_floating_point() else value).numpy()


def as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def in_float64(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def errors(op: Op, arguments: dict[str, Any], bound: Bound | None = None) -> list[str]:
    """Say where the reference is outside of its bound against the formula."""
    formed = subject_of(op.name).formula(**{name: as_numpy(value) for name, value in arguments.items()})
    tensors = [torch.from_numpy(np.asarray(result)) for result in formed]
    # The formula returns what the reference updates in place.
    given, updated = in_float64(arguments), op.updated(arguments)
    count = len(tensors) - len(updated)
    before = {name: given[name].clone() for name in updated}
    exact = given | dict(zip(updated, tensors[count:], strict=True))
    truths = op.results(tuple(tensors[:count]), exact)
    sizes = as_tuple(op.magnitude(truths, **exact | before)) if op.magnitude else truths
    results = op.results(op.reference(**arguments), arguments)
    return [
        f"result {index}: {found}"
        for index, (result, truth, size) in enumerate(zip(results, truths, sizes, strict=True))
        if (found := difference(result, truth, size, bound or op.bound))
    ]


def difference(result: Tensor, truth: Tensor, size: Tensor, bound: Bound) -> str:
    if result.shape != truth.shape:
        return f"{tuple(result.shape)} instead of {tuple(truth.shape)}"
    if not result.is_floating_point():
        return "" if torch.equal(result.long(), truth.long()) else "other ids"
    error = error_in_units(result, truth, size)
    return f"{error} units" if error > bound.of(result.dtype) else ""

"""Another vendor's kernels with two of them wrong: one fused, one ATen; right ones if neither is named.

Not imported by tests: its text becomes the module of an installed package. ``PLANTED_ON`` is the target of
the other ``Vendor``; ``PLANTED_FUSED`` and ``PLANTED_ATEN`` name an op each.
"""

import functools
import importlib
import os
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as tree

from sglang_fl.ops import OPS
from sglang_fl.vendor import AtenKernel, BackendKind, load_target

MODULE, NAME = os.environ["PLANTED_ON"].split(":")
OTHER = getattr(importlib.import_module(MODULE), NAME)
FUSED, ATEN = os.environ.get("PLANTED_FUSED", ""), os.environ.get("PLANTED_ATEN", "")
#: The kernels in whose place the wrong one is put.
RIGHT = {impl.op: impl.target for impl in OTHER.impls if impl.id == "flagos"}


def _wrong(result: Any) -> Any:
    """Return a copy of the results with the first half of each row half as large again."""

    def spoiled(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        wrong = x.clone()
        wrong[..., : x.shape[-1] // 2] *= 1.5
        return wrong

    return tree.tree_map(spoiled, result)


def fused(*args: Any, **kwargs: Any) -> Any:
    return _wrong(load_target(RIGHT[FUSED])(*args, **kwargs))


if FUSED:
    functools.update_wrapper(fused, OPS[FUSED].reference)  # core looks at the signature


def ops() -> Any:
    return load_target(OTHER.aten.ops)()


def kernels() -> tuple[AtenKernel, ...]:
    found = load_target(OTHER.aten.kernels)()
    return tuple(_spoiling(k) if k.overload == ATEN else k for k in found)


def _spoiling(kernel: AtenKernel) -> AtenKernel:
    @functools.wraps(kernel.function)
    def spoiling(*args: Any, **kwargs: Any) -> Any:
        return _wrong(kernel.function(*args, **kwargs))

    return replace(kernel, function=spoiling)


VENDOR = replace(
    OTHER,
    name="planted",
    impls=tuple(
        replace(impl, target="planted_vendor:fused") if (impl.op, impl.id) == (FUSED, "flagos") else impl
        for impl in OTHER.impls
        if impl.kind is BackendKind.FLAGOS  # native kernels bear their vendor's name
    ),
    aten=replace(OTHER.aten, ops="planted_vendor:ops", kernels="planted_vendor:kernels"),
)

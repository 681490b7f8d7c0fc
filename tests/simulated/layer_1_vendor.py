"""The vendor of this session's chip with ATen kernels, for the tests of layer 1 on a simulated chip.

Not imported by tests: its text becomes the module of an installed package. ``MEASURED_BASE`` names a vendor.
There is no Triton on a simulated chip, so the kernels are made of other ATen ops.
"""

import dataclasses
import os
from importlib.metadata import entry_points

import torch

from sglang_fl.vendor import AtenChoice, AtenKernel, AtenOffer, AtenOp, AtenQuarantined, BackendKind

(BASE,) = (
    point.load() for point in entry_points(group="sglang_fl.vendors", name=os.environ["MEASURED_BASE"])
)


def ops():
    """Return the ops without their kernels."""
    return [AtenOp(op.overload, op.name) for op in KERNELS]


def kernels():
    """Return the ops with their kernels."""
    return KERNELS


def add(x, y, *, alpha=1):
    """Add by subtracting."""
    return torch.sub(x, y, alpha=-alpha)


def softmax(x, dim, half_to_float):
    """Form the exponentials and their sum."""
    terms = torch.exp(x - torch.amax(x, dim, keepdim=True))
    return terms / torch.sum(terms, dim, keepdim=True)


def log_softmax(x, dim, half_to_float):
    """Take the logarithm of the sum."""
    shifted = x - torch.amax(x, dim, keepdim=True)
    return shifted - torch.log(torch.sum(torch.exp(shifted), dim, keepdim=True))


def argmax(x, dim=None, keepdim=False):
    """Find the index that belongs to the maximum."""
    return torch.max(x, dim, keepdim).indices


def broken(x, dim=None, *, dtype=None):
    """Fail: in quarantine, or measured by nobody."""
    raise RuntimeError("a kernel was called that must not run")


KERNELS = (
    AtenKernel("add.Tensor", "add", add),
    AtenKernel("_softmax", "softmax", softmax),
    AtenKernel("_log_softmax", "log_softmax", log_softmax),
    AtenKernel("argmax", "argmax", argmax),
    AtenKernel("cumsum", "cumsum", broken),
    AtenKernel("clamp", "clamp", broken),
)

VENDOR = dataclasses.replace(
    BASE,
    name="measured",
    impls=tuple(
        dataclasses.replace(impl, id="vendor.measured")
        for impl in BASE.impls
        if impl.kind is BackendKind.VENDOR
    ),
    quarantine=(),
    defaults={"prefer": "vendor"},
    aten=AtenOffer(
        "measured_vendor:ops",
        "measured_vendor:kernels",
        choices=(
            AtenChoice(
                ("add", "softmax", "log_softmax", "argmax", "cumsum"), True, "right on a simulated chip"
            ),
        ),
        quarantine=(AtenQuarantined(("cumsum",), "it raises", "torch", ">=2", "measured_vendor:broken"),),
    ),
)

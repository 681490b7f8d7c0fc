"""A vendor package of right kernels, fused and ATen, into which faults can be planted while it runs.

Not imported by tests: its text becomes the module of an installed package. A file in the folder that
``FAULTS_FOLDER`` names plants the fault of its name, ``FAULT on rank 1`` in that process alone. The vendor is
one of CPUs, or with ``FAULTS_CHIP=mlu`` one of the simulated chip.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglang_fl.ops import OPS
from sglang_fl.vendor import AtenChoice, AtenKernel, AtenOffer, AtenOp, BackendKind, OpImpl, Vendor

FOLDER = Path(os.environ.get("FAULTS_FOLDER", "/nonexistent"))
CHIP = os.environ.get("FAULTS_CHIP", "cpu")
PLATFORMS = {
    "cpu": "sglang_fl.sglang_adapter.cpu_platform.CpuPlatform",
    "mlu": "sglang_fl_mlu.platform.MluPlatform",
}
FUSED = ("rms_norm", "silu_and_mul", "rotary_embedding")


def why_unavailable() -> str | None:
    """Return None: this chip is everywhere."""
    return None


def has(fault: str) -> bool:
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    return (FOLDER / fault).exists() or (FOLDER / f"{fault} on rank {rank}").exists()


@functools.cache
def scratch() -> Tensor:
    """Return where the two kernels of the fault "pair" keep a result, each as if it were its own."""
    return torch.empty(1 << 20, device=CHIP)


def in_scratch(result: Tensor) -> Tensor:
    return scratch()[: result.numel()].view(result.shape).copy_(result) if has("pair") else result


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Any:
    results = OPS["rms_norm"].reference(x, weight, eps, residual)
    return results if residual is None else (results[0], in_scratch(results[1]))


def silu_and_mul(x: Tensor) -> Any:
    result = in_scratch(OPS["silu_and_mul"].reference(x))
    if has("fused"):
        result = result * 1.05
    if has("nondeterministic"):
        result = result * (1 + 0.1 * np.random.rand())
    return result


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    offsets: Tensor | None = None,
) -> Any:
    results = OPS["rotary_embedding"].reference(
        positions, query, key, cos_sin_cache, head_size, is_neox_style, offsets
    )
    for x, result in zip((query, key), results, strict=True):
        x.copy_(result)
    if has("past-its-row"):
        query[1:, 0] = 7.0  # the row after this one
    return query, key


def pointwise(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a kernel by NumPy, so that none of them calls another."""

    def kernel(*args: Any) -> Tensor:
        dtype = torch.result_type(*args) if len(args) == 2 else args[0].dtype
        is_counted = not dtype.is_floating_point and name in ("add", "sub", "mul")
        through = torch.float32 if has("float32-integers") and is_counted else dtype
        arrays = [to_array(a, through) for a in args]
        result = np.asarray(function(*arrays))
        if has("aten") and name == "add" and dtype.is_floating_point:
            result = result * 1.03
        if result.dtype != np.bool_:
            result = result.astype(to_array(torch.empty(0, dtype=dtype), dtype).dtype)
        return torch.from_numpy(np.array(result, order="C")).to(CHIP)

    return kernel


def to_array(value: Any, dtype: torch.dtype) -> Any:
    numbers = {torch.float32: np.float32, torch.int64: np.int64, torch.int32: np.int32, torch.bool: np.bool_}
    kind = numbers.get(dtype, np.float64)
    return value.cpu().numpy().astype(kind) if isinstance(value, Tensor) else np.asarray(value, dtype=kind)


def add(x: Any, y: Any, *, alpha: Any = 1) -> Tensor:
    return ADD(x, y if alpha == 1 else MUL(y, alpha))


def sub(x: Any, y: Any, *, alpha: Any = 1) -> Tensor:
    return SUB(x, y if alpha == 1 else MUL(y, alpha))


ADD, SUB, MUL = (pointwise(n, f) for n, f in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply)))
UNARY = {
    "cos": np.cos,
    "sin": np.sin,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "neg": np.negative,
    "abs": np.abs,
    "tanh": np.tanh,
    "reciprocal": np.reciprocal,
    "ceil": np.ceil,
    "floor": np.floor,
    "sign": np.sign,
}
COMPARED = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal}

KERNELS = (
    AtenKernel("add.Tensor", "add", add),
    AtenKernel("sub.Tensor", "sub", sub),
    AtenKernel("mul.Tensor", "mul", MUL),
    *(AtenKernel(name, name, pointwise(name, function)) for name, function in UNARY.items()),
    *(AtenKernel(f"{name}.Tensor", name, pointwise(name, f)) for name, f in COMPARED.items()),
)


def ops() -> list[AtenOp]:
    return [AtenOp(kernel.overload, kernel.name) for kernel in KERNELS]


def kernels() -> tuple[AtenKernel, ...]:
    return KERNELS


VENDOR = Vendor(
    "faulty",
    device_type=CHIP,
    core_api=1,
    probe="faulty_vendor:why_unavailable",
    platform=PLATFORMS[CHIP],
    impls=tuple(OpImpl(name, BackendKind.FLAGOS, "flagos", f"faulty_vendor:{name}") for name in FUSED),
    aten=AtenOffer(
        "faulty_vendor:ops",
        "faulty_vendor:kernels",
        choices=(AtenChoice(tuple(str(op) for op in KERNELS), True, "right"),),
    ),
)

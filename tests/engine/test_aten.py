"""Layer 1 in the real engine on a CPU, by a chip that brings ATen kernels for it."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.engine.fake_vendor import install_vendor
from tests.programs import Run

pytestmark = pytest.mark.timeout(400)

#: Its kernels are made of other ATen ops. Beside sglang-fl it notes, as PyTorch's dispatcher sees them, all
#: calls of the ops that it offers. Its norm, a kernel of layer 2, calls ``neg``, which the model never does.
REPLACING = """
import os
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sglang_fl.vendor import (
    AtenChoice, AtenKernel, AtenOffer, AtenOp, AtenQuarantined, BackendKind, OpImpl, Vendor
)


def why_unavailable():
    return None


def ops():
    return [AtenOp(op.overload, op.name) for op in KERNELS]


def kernels():
    Watch().__enter__()  # for good: in this thread the scheduler runs the model
    print("ATEN KERNELS LOADED", flush=True)
    return KERNELS


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        overload = str(func).removeprefix("aten.").removesuffix(".default")
        if overload in OVERLOADS:
            with open(os.environ["TOY_BOOK"], "a") as book:
                book.write(overload + "\\n")
        return func(*args, **kwargs or {})


def mul(x, y):
    dtype = torch.result_type(x, y)
    x, y = torch.as_tensor(x).to(dtype), torch.as_tensor(y).to(dtype)
    return torch.addcmul(torch.zeros((), dtype=dtype), x, y)


def add(x, y, *, alpha=1):
    return torch.sub(x, y, alpha=-alpha)


def cos(x):
    return torch.polar(torch.ones_like(x), x).real.contiguous()


def embedding(weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    return torch.index_select(weight, 0, indices.reshape(-1)).reshape(*indices.shape, -1)


def lt(x, y):
    raise RuntimeError("a kernel in quarantine was called")


def neg(x):
    return torch.sub(torch.zeros_like(x), x)


def argmax(x, dim=None, keepdim=False):
    raise RuntimeError("a kernel that nobody has measured was called")


KERNELS = (
    AtenKernel("mul.Tensor", "mul", mul),
    AtenKernel("add.Tensor", "add", add),
    AtenKernel("cos", "cos", cos),
    AtenKernel("embedding", "embedding", embedding),
    AtenKernel("lt.Tensor", "lt", lt),
    AtenKernel("lt.Scalar", "lt_scalar", lt),
    AtenKernel("neg", "neg", neg),
    AtenKernel("argmax", "argmax", argmax),
)
OVERLOADS = {op.overload for op in KERNELS}


def rms_norm(x, weight, eps, residual=None):
    if residual is not None:
        x = residual.add_(x)
    wide = -(-x.float())
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight.float()
    out = wide.to(x.dtype)
    return out if residual is None else (out, residual)


VENDOR = Vendor(
    "toy",
    device_type="cpu",
    core_api=1,
    probe="toy_vendor:why_unavailable",
    platform="sglang_fl.sglang_adapter.cpu_platform.CpuPlatform",
    impls=(OpImpl("rms_norm", BackendKind.FLAGOS, "flagos", "toy_vendor:rms_norm"),),
    aten=AtenOffer(
        "toy_vendor:ops",
        "toy_vendor:kernels",
        choices=(AtenChoice(("mul", "add", "cos", "embedding", "aten::lt", "neg"), True, "fast on a toy"),),
        quarantine=(AtenQuarantined(("aten::lt",), "it raises", "torch", ">=2", "toy_vendor:lt"),),
    ),
)
"""
REPLACED = {"mul.Tensor", "add.Tensor", "cos", "embedding", "neg"}
LINES = {
    f"[DEBUG] toy_vendor.{name}: GEMS {name.upper()} aten::{overload}": overload
    for name, overload in {
        "mul": "mul.Tensor",
        "add": "add.Tensor",
        "cos": "cos",
        "embedding": "embedding",
        "neg": "neg",
    }.items()
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
    """A folder for PYTHONPATH that brings the chip."""
    return str(install_vendor(tmp_path_factory.mktemp("toy"), "toy", REPLACING))


@pytest.fixture
def run_recorded(run_offline, toy, tmp_path: Path):
    """``run_recorded(settings)`` returns the run, the lines of the record, and what PyTorch saw."""

    def run(settings: dict[str, str]) -> tuple[Run, list[str], Counter[str]]:
        record, book = tmp_path / "aten.log", tmp_path / "book"
        book.touch()
        done = run_offline(
            {
                "PYTHONPATH": toy,
                "TOY_BOOK": str(book),
                "SGLANG_FLAGGEMS_RECORD": "1",
                "SGLANG_FLAGGEMS_LOG_PATH": str(record),
                **settings,
            }
        )
        assert done.code == 0, done.output[-3000:]
        return done, record.read_text().splitlines(), Counter(book.read_text().split())

    return run


def test_measured_ops_are_replaced_once_and_recorded_exactly(run_recorded):
    run, lines, seen = run_recorded({"SGLANG_FL_OOT_ENABLED": "0", "SGLANG_FLAGGEMS_LOG_ONCE": "0"})
    recorded = Counter(LINES[line] for line in lines)
    assert recorded == Counter({op: count for op, count in seen.items() if op in REPLACED})
    assert {"mul.Tensor", "add.Tensor", "embedding"} <= recorded.keys()
    assert run.output.count("ATEN KERNELS LOADED") == 1
    assert run.output.count("layer 1: 5 of 8 ATen ops run on toy's kernels") == 1
    loaded = run.output.index("ATEN KERNELS LOADED")
    assert run.output.index("Load weight end") < loaded < run.output.index("KV Cache is allocated")
    assert len(run.result["tokens"]) == 8


def test_lists_choose_and_calls_of_layer_2_are_not_recorded(run_recorded, tmp_path: Path):
    log = tmp_path / "dispatch.log"
    run, lines, seen = run_recorded(
        {"SGLANG_FL_FLAGOS_WHITELIST": "neg,aten::add,lt", "SGLANG_FL_DISPATCH_LOG": str(log)}
    )
    assert "[OOT-DISPATCH] RMSNorm → flagos(flagos)" in log.read_text()
    assert seen["neg"] > 0  # the norm has called it
    assert seen["mul.Tensor"] > 0  # PyTorch's
    assert sorted(LINES[line] for line in lines) == ["add.Tensor"]
    assert "layer 1: 2 of 8 ATen ops run on toy's kernels" in run.output
    warning = "SGLANG_FL_FLAGOS_WHITELIST: lt (aten::lt.Tensor) is not replaced: in quarantine: it raises"
    assert run.output.count(warning) == 1


def test_off_is_bit_equal_to_no_plugin_and_loads_no_kernel(run_offline, no_hook, toy, tmp_path: Path):
    record = tmp_path / "aten.log"
    off = run_offline(
        {
            "PYTHONPATH": toy,
            "USE_FLAGGEMS": "0",
            "SGLANG_FL_OOT_ENABLED": "0",
            "SGLANG_FLAGGEMS_RECORD": "1",
            "SGLANG_FLAGGEMS_LOG_PATH": str(record),
        }
    )
    assert json.dumps(off.result) == json.dumps(no_hook)
    assert "ATEN KERNELS LOADED" not in off.output
    assert not record.exists()

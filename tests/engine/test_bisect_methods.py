"""Kernels of the gated delta rule under bisect: methods of SGLang's own kernel object, which are no layers.

SGLang has no path for them on a CPU, so no engine runs; the object and the references are real.
"""

import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.attention.linear.gdn_backend import GDNKernelDispatcher
from sglang.srt.layers.attention.linear.utils import LinearAttnKernelBackend

from sglang_fl.bisect.bench import Bench, _armed
from sglang_fl.dispatch.kept_calls import KeptCalls
from sglang_fl.dispatch.op_check import OpCheck
from sglang_fl.ops import OPS
from sglang_fl.sglang_adapter import seams
from sglang_fl.startup import configure
from sglang_fl.vendor import BackendKind, OpImpl

EXTEND = "chunk_gated_delta_rule"
METHODS = {
    EXTEND: ["TritonGDNKernel.extend"],
    "fused_sigmoid_gating_delta_rule_update": ["TritonGDNKernel.decode"],
    "fused_recurrent_gated_delta_rule_packed_decode": ["TritonGDNKernel.packed_decode"],
}


@pytest.fixture
def wrong(monkeypatch) -> OpImpl:
    """An implementation whose output is a tenth too large."""
    reference = OPS[EXTEND].reference

    def chunk_gated_delta_rule(*args: Any, **kwargs: Any) -> Any:
        o, h = reference(*args, **kwargs)
        return o * 1.1, h

    chunk_gated_delta_rule.__wrapped__ = reference
    module = ModuleType("wrong_delta_rule")
    module.chunk_gated_delta_rule = chunk_gated_delta_rule
    monkeypatch.setitem(sys.modules, "wrong_delta_rule", module)
    return OpImpl(EXTEND, BackendKind.FLAGOS, "flagos", "wrong_delta_rule:chunk_gated_delta_rule")


@pytest.fixture
def kernel(plugin):
    triton = LinearAttnKernelBackend.TRITON
    dispatcher = GDNKernelDispatcher(triton, triton)
    kernel = dispatcher.decode_kernel
    kernel.dispatcher = dispatcher
    return kernel


@pytest.fixture
def bench(kernel, wrong: OpImpl, tmp_path: Path, monkeypatch) -> Bench:
    """A bench of a model without layers, and with this one kernel object."""
    configuration = configure()
    resolutions = {**configuration.resolutions}
    resolutions[EXTEND] = dataclasses.replace(resolutions[EXTEND], candidates=(wrong,))
    configuration = dataclasses.replace(configuration)  # one of this test's own
    monkeypatch.setitem(vars(configuration), "resolutions", resolutions)
    calls = OpCheck(report=lambda violation: None)
    layers = _armed(
        configuration, seams.seam_of(seams.installed_version()), calls, KeptCalls(tmp_path / "calls")
    )
    bench = Bench(tmp_path, layers, calls, lambda: (), "cpu")
    backend = SimpleNamespace(linear_attn_backend=SimpleNamespace(kernel_dispatcher=kernel.dispatcher))
    runner = SimpleNamespace(model=torch.nn.Module(), attn_backend=backend)
    bench.attach(SimpleNamespace(tp_worker=SimpleNamespace(model_runner=runner)))
    bench.do("arm")
    return bench


def answered(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.rank0.json").read_text())


def extend(kernel) -> torch.Tensor:
    """Call it as the attention backend does, with two sequences of four tokens and one head."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 8, 1, 16, generator=draw) for _ in range(3))
    g, beta = -torch.rand(1, 8, 1, generator=draw), torch.rand(1, 8, 1, generator=draw)
    o, *_ = kernel.extend(
        *(q, k, v, g, beta),
        ssm_states=torch.zeros(2, 1, 16, 16),
        cache_indices=torch.tensor([0, 1], dtype=torch.int32),
        query_start_loc=torch.tensor([0, 4, 8], dtype=torch.int32),
    )
    return o


def test_each_method_is_a_unit(bench: Bench, tmp_path: Path):
    assert answered(tmp_path, "step")["error"] == ""
    assert answered(tmp_path, "units")["layer_2"] == METHODS


def test_a_method_is_switched_on_and_back(bench: Bench, kernel):
    own = kernel.extend
    assert own.__func__ is type(kernel).extend
    bench.do("use_references")
    right = extend(kernel)
    bench.do("switch", layer_2=[EXTEND], layer_1=[])
    torch.testing.assert_close(extend(kernel), 1.1 * right)
    bench.do("switch", layer_2=[EXTEND], layer_1=[], layers=["TritonGDNKernel.decode"])
    assert kernel.extend == own
    bench.do("switch", layer_2=[], layer_1=[])
    assert kernel.extend == own


def test_a_wrong_one_is_found_by_its_name(bench: Bench, kernel, tmp_path: Path):
    bench.do("watch", layer_2=list(METHODS), layer_1=[])
    extend(kernel)
    bench.do("findings", layer_1=[])
    (found,) = answered(tmp_path, "findings")["violations"]
    assert (found["op"], found["layer"], found["what"]) == (EXTEND, "TritonGDNKernel", "result 0")
    assert (tmp_path / found["inputs"]).exists()

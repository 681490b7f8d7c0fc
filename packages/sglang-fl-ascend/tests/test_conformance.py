"""Every implementation against its contract: those of ``torch_npu`` simulated, all of them on a chip."""

import dataclasses

import pytest
import torch

from sglang_fl.conformance import check_case, check_impl, verify_impl
from sglang_fl.ops import OPS, Case
from sglang_fl.vendor import OpImpl, load_target
from sglang_fl_ascend import ASCEND

NATIVE = [impl for impl in ASCEND.impls if impl.id == "vendor.ascend"]
ROTARY = OPS["rotary_embedding"]


@pytest.mark.npu
@pytest.mark.parametrize("impl", ASCEND.impls, ids=lambda impl: f"{impl.op}-{impl.id}")
def test_implementation_keeps_its_contract(impl: OpImpl):
    assert check_impl(impl, "npu") == []


@pytest.mark.on_chip("ascend")
@pytest.mark.parametrize("impl", NATIVE, ids=lambda impl: impl.op)
def test_implementation_keeps_its_contract_on_the_simulated_chip(impl: OpImpl):
    assert check_impl(impl, "npu") == []


@pytest.mark.on_chip("ascend")
@pytest.mark.parametrize("impl", NATIVE, ids=lambda impl: impl.op)
def test_implementation_is_captured_in_graphs_on_the_simulated_chip(impl: OpImpl):
    verdict = verify_impl(impl, "npu", ("graph",))
    assert (verdict.faults, verdict.not_checked) == ({"graph": []}, [])
    assert verdict.graphs > 0


def with_cache_in_dtype(case: Case) -> Case:
    """Return a case of ``rotary_embedding`` as SGLang calls it here: its cache has the model's dtype."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> dict[str, object]:
        arguments = case.make(dtype, generator)
        return {**arguments, "cos_sin_cache": arguments["cos_sin_cache"].to(dtype)}

    return dataclasses.replace(case, make=make)


@pytest.mark.on_chip("ascend")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", [case.name for case in ROTARY.cases])
def test_rotary_embedding_keeps_its_contract_with_a_cache_in_the_models_dtype(name, dtype):
    (case,) = (case for case in ROTARY.cases if case.name == name)
    kernel = load_target("sglang_fl_ascend.vendor.rotary_embedding:rotary_embedding")
    assert check_case(ROTARY, kernel, with_cache_in_dtype(case), dtype, "npu") == []

"""Every implementation against its contract: those of ``torch_npu`` simulated, all of them on a chip."""

import dataclasses
import sys
from unittest import mock

import pytest
import torch

from sglang_fl.conformance import check_case, check_impl, verify_impl
from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import OPS, Case
from sglang_fl.vendor import OpImpl, load_target
from sglang_fl_ascend import ASCEND

NATIVE = [impl for impl in ASCEND.impls if impl.id == "vendor.ascend"]
ROTARY = [(name, case.name) for name in ("rotary_embedding", "mrope") for case in OPS[name].cases]
#: Sections that ``npu_mrope`` has not, and a mode that it does not know. Heads of 80 it takes in float32.
REFUSED = {("mrope", name) for name in ("glm", "partial", "pairs-interleaved")}


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
def test_implementation_is_held_to_the_edges_on_the_simulated_chip(impl: OpImpl):
    verdict = verify_impl(impl, "npu", ("edges",))
    assert verdict.faults == {"edges": []}
    # The simulated chip has 4 GiB: too little for rows that lie 2**31 elements apart, and for nothing else.
    assert all("[far-" in reason and "cannot hold it" in reason for reason in verdict.not_checked)


@pytest.mark.on_chip("ascend")
@pytest.mark.parametrize("impl", NATIVE, ids=lambda impl: impl.op)
def test_implementation_is_captured_in_graphs_on_the_simulated_chip(impl: OpImpl):
    verdict = verify_impl(impl, "npu", ("graph",))
    assert (verdict.faults, verdict.not_checked) == ({"graph": []}, [])
    assert verdict.graphs > 0


def with_cache_in_dtype(case: Case) -> Case:
    """Return a case of a rotary op as SGLang calls it here: its cache has the model's dtype."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> dict[str, object]:
        arguments = case.make(dtype, generator)
        return {**arguments, "cos_sin_cache": arguments["cos_sin_cache"].to(dtype)}

    return dataclasses.replace(case, make=make)


@pytest.mark.on_chip("ascend")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "case_name"), ROTARY)
def test_rotary_ops_keep_their_contract_with_a_cache_in_the_models_dtype(name, case_name, dtype):
    op, kernel = OPS[name], load_target(f"sglang_fl_ascend.vendor.{name}:{name}")
    (case,) = (case for case in op.cases if case.name == case_name)
    has_odd_heads = case_name.startswith("partial") and dtype is not torch.float32
    writes_cache = case_name.startswith("kv-cache")  # an option that these kernels leave out
    expected = None if has_odd_heads or writes_cache or (name, case_name) in REFUSED else []
    assert check_case(op, kernel, with_cache_in_dtype(case), dtype, "npu") == expected


@pytest.mark.on_chip("ascend")
@pytest.mark.parametrize("op", ["rotary_embedding", "mrope", "gemma_rms_norm", "fused_moe"])
def test_on_a_310p_what_it_lacks_is_refused_when_the_kernel_is_loaded(op):
    import torch_npu

    with mock.patch.object(torch_npu.npu, "get_soc_version", return_value=202), mock.patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.startswith("sglang_fl_ascend.vendor")]:
            del sys.modules[name]
        with pytest.raises(UnsupportedError, match="a 310P has no npu_"):
            load_target(f"sglang_fl_ascend.vendor.{op}:{op}")

"""Every implementation against its contract: those of ``torch_mlu_ops`` simulated, all of them on a chip."""

import dataclasses

import pytest
import torch

from sglang_fl.conformance import check_case, check_impl, verify_impl
from sglang_fl.ops import OPS, Case
from sglang_fl.vendor import OpImpl, load_target
from sglang_fl_mlu import MLU

NATIVE = [impl for impl in MLU.impls if impl.id == "vendor.mlu"]
ROTARY = OPS["rotary_embedding"]


@pytest.mark.mlu
@pytest.mark.parametrize("impl", MLU.impls, ids=lambda impl: f"{impl.op}-{impl.id}")
def test_implementation_keeps_its_contract(impl: OpImpl):
    assert check_impl(impl, "mlu") == []


@pytest.mark.on_chip("mlu")
@pytest.mark.parametrize("impl", NATIVE, ids=lambda impl: impl.op)
def test_implementation_keeps_its_contract_on_the_simulated_chip(impl: OpImpl):
    assert check_impl(impl, "mlu") == []


@pytest.mark.on_chip("mlu")
@pytest.mark.parametrize("impl", NATIVE, ids=lambda impl: impl.op)
def test_implementation_is_held_to_the_edges_on_the_simulated_chip(impl: OpImpl):
    verdict = verify_impl(impl, "mlu", ("edges",))
    assert verdict.faults == {"edges": []}
    # The simulated chip has 4 GiB: too little for rows that lie 2**31 elements apart, and for nothing else.
    assert all("[far-" in reason and "cannot hold it" in reason for reason in verdict.not_checked)


@pytest.mark.on_chip("mlu")
@pytest.mark.parametrize("impl", NATIVE, ids=lambda impl: impl.op)
def test_implementation_is_captured_in_graphs_on_the_simulated_chip(impl: OpImpl):
    verdict = verify_impl(impl, "mlu", ("graph",))
    assert (verdict.faults, verdict.not_checked) == ({"graph": []}, [])
    assert verdict.graphs > 0


def with_cache_in_dtype(case: Case) -> Case:
    """Return a case of ``rotary_embedding`` as SGLang calls it here: its cache has the model's dtype."""

    def make(dtype: torch.dtype, generator: torch.Generator) -> dict[str, object]:
        arguments = case.make(dtype, generator)
        return {**arguments, "cos_sin_cache": arguments["cos_sin_cache"].to(dtype)}

    return dataclasses.replace(case, make=make)


@pytest.mark.on_chip("mlu")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", [case.name for case in ROTARY.cases])
def test_rotary_embedding_keeps_its_contract_with_a_cache_in_the_models_dtype(name, dtype):
    (case,) = (case for case in ROTARY.cases if case.name == name)
    kernel = load_target("sglang_fl_mlu.vendor.rotary_embedding:rotary_embedding")
    expected = None if name.startswith("kv-cache") else []  # an option that the kernel leaves out
    assert check_case(ROTARY, kernel, with_cache_in_dtype(case), dtype, "mlu") == expected


@pytest.mark.on_chip("mlu")
def test_rotary_tables_are_made_once_and_again_when_the_cache_has_changed():
    from sglang_fl_mlu.vendor.rotary_embedding import _tables

    cache = torch.randn(8, 4).to("mlu")
    first = _tables(cache, True)
    assert _tables(cache, True) is first
    assert first.sin.cpu().tolist() == cache.cpu()[:, [2, 3, 2, 3]].tolist()
    cache.mul_(2)
    assert torch.equal(_tables(cache, True).cos, first.cos * 2)
    assert _tables(cache, False).cos.cpu().tolist() == cache.cpu()[:, [0, 0, 1, 1]].tolist()

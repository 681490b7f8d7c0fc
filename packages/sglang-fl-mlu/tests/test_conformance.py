"""Every implementation against its contract: those of ``torch_mlu_ops`` simulated, all of them on a chip."""

import dataclasses
from unittest import mock

import pytest
import torch
from torch import Tensor

from sglang_fl.conformance import check_case, check_impl, verify_impl
from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import OPS, Case
from sglang_fl.vendor import OpImpl, load_target
from sglang_fl_mlu import MLU

NATIVE = [impl for impl in MLU.impls if impl.id == "vendor.mlu"]
CAPTURED = [impl for impl in NATIVE if OPS[impl.op].captured]
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
@pytest.mark.parametrize("impl", CAPTURED, ids=lambda impl: impl.op)
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


DECODE, EXTEND = "single_query_cached_kv_attn", "flash_attention"


def attention(op: str, case: str, dtype: torch.dtype = torch.float32, **changed: object):
    """Return the kernel of an op of attention and the arguments of one of its cases on the chip."""
    (made,) = (known for known in OPS[op].cases if known.name == case)
    kernel = load_target(f"sglang_fl_mlu.vendor.{op}:{op}")
    return kernel, {**made.arguments(dtype, "mlu"), **changed}


@pytest.mark.on_chip("mlu")
@pytest.mark.parametrize("case", ["mixed-lengths", "latent"])
def test_decode_attention_hands_the_pools_to_the_library_as_they_are(case):
    from sglang_fl_mlu.vendor import decode_attention as module

    kernel, given = attention("decode_attention", case)
    if case == "latent":  # as in a server: the values are a part of the keys
        given["v_buffer"] = given["k_buffer"][..., : given["v_buffer"].shape[2]]
    with mock.patch.object(module, DECODE, wraps=getattr(module, DECODE)) as library:
        result = kernel(**given)
    expected = OPS["decode_attention"].reference(**given)
    torch.testing.assert_close(result.cpu(), expected.cpu())
    (_, keys, values, *_), _ = library.call_args
    assert keys.data_ptr() == given["k_buffer"].data_ptr()
    assert keys.shape[2] == 1
    if case == "latent":
        assert values is None
    else:
        assert values.data_ptr() == given["v_buffer"].data_ptr()


@pytest.mark.on_chip("mlu")
@pytest.mark.parametrize("name", ["decode_attention", "extend_attention"])
def test_attention_writes_a_dense_result_where_the_caller_wants_it(name):
    kernel, given = attention(name, "result-given")
    given["out"] = given["out"].contiguous()
    assert kernel(**given) is given["out"]
    kernel, given = attention(name, "result-given")  # with something between the rows
    assert kernel(**given) is not given["out"]


def with_both(given: dict[str, Tensor]) -> dict[str, object]:
    return given | {"sinks": torch.zeros(given["q"].shape[1]).to("mlu"), "return_lse": True}


def with_pools_in_half(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return given | {pool: given[pool].half() for pool in ("k_buffer", "v_buffer")}


def with_129_heads(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return given | {"q": given["q"][:, :1].repeat(1, 129, 1)}


REFUSED = [
    ("decode_attention", "mixed-lengths", with_both, "whether a sink is in the logarithm"),
    ("extend_attention", "prefixes", with_both, "whether a sink is in the logarithm"),
    ("decode_attention", "mixed-lengths", with_pools_in_half, "one dtype, not q float32, k_buffer float16"),
    ("extend_attention", "prefixes", with_pools_in_half, "one dtype, not q float32, k float32, v float32"),
    ("decode_attention", "pools-strided", dict, "takes dense pools, not strides"),
    ("decode_attention", "one-head-of-keys", with_129_heads, "128 query heads for one of keys, not 129"),
]


@pytest.mark.on_chip("mlu")
@pytest.mark.parametrize(
    ("name", "case", "change", "message"), REFUSED, ids=lambda value: getattr(value, "__name__", value)
)
def test_attention_refuses_what_the_library_does_not_take(name, case, change, message):
    kernel, given = attention(name, case)
    with pytest.raises(UnsupportedError, match=message):
        kernel(**change(given))


@pytest.mark.on_chip("mlu")
def test_decode_attention_in_a_graph_takes_lengths_that_come_later():
    kernel, given = attention("decode_attention", "longer-list")
    graph = torch.mlu.MLUGraph()
    with torch.mlu.graph(graph):
        result = kernel(**given)
    given["kv_indptr"].copy_(given["kv_indptr"].new_tensor([0, 60, 61, 65]))  # one is longer than any was
    graph.replay()
    assert torch.equal(result, kernel(**given))


@pytest.mark.on_chip("mlu")
def test_extend_attention_without_a_prefix_copies_no_keys():
    from sglang_fl_mlu.vendor import extend_attention as module

    kernel, given = attention("extend_attention", "no-prefix")
    with mock.patch.object(module, EXTEND, wraps=getattr(module, EXTEND)) as library:
        kernel(**given)
    (_, keys, values, *_), _ = library.call_args
    assert (keys.data_ptr(), values.data_ptr()) == (given["k"].data_ptr(), given["v"].data_ptr())

"""Every implementation against its contract: those of ``torch_npu`` simulated, all of them on a chip."""

import dataclasses
import functools
import sys
from unittest import mock

import pytest
import torch
from torch import Tensor

from sglang_fl.conformance import check_case, check_impl, verify_impl
from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import OPS, Case
from sglang_fl.vendor import OpImpl, load_target
from sglang_fl_ascend import ASCEND

NATIVE = [impl for impl in ASCEND.impls if impl.id == "vendor.ascend"]
CAPTURED = [impl for impl in NATIVE if OPS[impl.op].captured]
#: Whose operator has no float32.
IN_16_BITS = {"decode_attention"}
ROTARY = [(name, case.name) for name in ("rotary_embedding", "mrope") for case in OPS[name].cases]
#: Sections that ``npu_mrope`` has not, and a mode that it does not know. Heads of 80 it takes in float32.
REFUSED_ROTARY = {("mrope", name) for name in ("glm", "partial", "pairs-interleaved")}
#: Those that call an operator which a 310P lacks.
OPS_LACKED = (
    "rotary_embedding",
    "mrope",
    "gemma_rms_norm",
    "fused_moe",
    "decode_attention",
    "extend_attention",
)


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
    reasons = set(verdict.not_checked)
    if impl.op in IN_16_BITS:
        reasons -= {reason for reason in reasons if reason.endswith("-float32]: refused by the kernel")}
    # The simulated chip has 4 GiB: too little for rows that lie 2**31 elements apart, and for nothing else.
    assert all("[far-" in reason and "cannot hold it" in reason for reason in reasons)


@pytest.mark.on_chip("ascend")
@pytest.mark.parametrize("impl", CAPTURED, ids=lambda impl: impl.op)
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
    expected = None if has_odd_heads or writes_cache or (name, case_name) in REFUSED_ROTARY else []
    assert check_case(op, kernel, with_cache_in_dtype(case), dtype, "npu") == expected


@pytest.mark.on_chip("ascend")
@pytest.mark.parametrize("op", OPS_LACKED)
def test_on_a_310p_what_it_lacks_is_refused_when_the_kernel_is_loaded(op):
    import torch_npu

    with mock.patch.object(torch_npu.npu, "get_soc_version", return_value=202), mock.patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.startswith("sglang_fl_ascend.vendor")]:
            del sys.modules[name]
        with pytest.raises(UnsupportedError, match="a 310P has no npu_"):
            load_target(f"sglang_fl_ascend.vendor.{op}:{op}")


def attention(op: str, case: str, dtype: torch.dtype = torch.float16):
    """Return the kernel of an op of attention and the arguments of one of its cases on the chip."""
    (made,) = (known for known in OPS[op].cases if known.name == case)
    return load_target(f"sglang_fl_ascend.vendor.{op}:{op}"), made.arguments(dtype, "npu")


def as_it_is(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return given


def in_float32(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() if is_floating(value) else value for name, value in given.items()}


def with_pools_in_float32(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return given | {pool: given[pool].float() for pool in ("k_buffer", "v_buffer")}


def with_heads(heads: int, given: dict[str, Tensor]) -> dict[str, Tensor]:
    return given | {"q": given["q"][:, :1].repeat(1, heads, 1)}


def is_floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


HEADS_65 = functools.partial(with_heads, 65)
REFUSED = [
    ("decode_attention", "mixed-lengths", in_float32, "one dtype of float16, bfloat16, not q float32"),
    ("decode_attention", "mixed-lengths", with_pools_in_float32, "q float16, k_buffer float32"),
    ("decode_attention", "wide-values", as_it_is, "values of the size of keys"),
    ("decode_attention", "latent", as_it_is, "values of the size of keys"),
    ("decode_attention", "one-head-of-keys", HEADS_65, "64 of them for one of keys, .* not 65 for 1 of 64"),
    ("extend_attention", "prefixes", with_pools_in_float32, "v float16, k_buffer float32"),
    ("extend_attention", "wide-values", as_it_is, "no more of a value, not 4, 32 and 96"),
]


@pytest.mark.on_chip("ascend")
@pytest.mark.parametrize("number", range(len(REFUSED)), ids=[f"{op}-{case}" for op, case, *_ in REFUSED])
def test_attention_refuses_what_the_operator_does_not_take(number):
    name, case, change, message = REFUSED[number]
    kernel, given = attention(name, case)
    with pytest.raises(UnsupportedError, match=message):
        kernel(**change(given))


@pytest.mark.on_chip("ascend")
def test_extend_attention_computes_latent_attention():
    (case,) = (case for case in OPS["extend_attention"].cases if case.name == "latent")
    kernel = load_target("sglang_fl_ascend.vendor.extend_attention:extend_attention")
    assert check_case(OPS["extend_attention"], kernel, case, torch.bfloat16, "npu") == []


@pytest.mark.on_chip("ascend")
def test_decode_attention_in_a_graph_takes_lengths_that_come_later():
    kernel, given = attention("decode_attention", "longer-list")
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        result = kernel(**given)
    given["kv_indptr"].copy_(given["kv_indptr"].new_tensor([0, 60, 61, 65]))  # one is longer than any was
    graph.replay()
    torch.testing.assert_close(result, kernel(**given))

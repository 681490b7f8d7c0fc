"""SGLang's own layer classes under the hook: what is bound, what falls through, how exact it is."""

import inspect
from pathlib import Path

import pytest
import torch
from sglang.kernels.fused_op import BaseFusedOp
from sglang.srt.batch_invariant_ops import batch_invariant_ops
from sglang.srt.layers import layernorm
from sglang.srt.layers.activation import GeluAndMul, SiluAndMul
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang.srt.layers.rotary_embedding.rope_variant import DeepseekScalingRotaryEmbedding
from sglang.srt.plugins import load_plugins

from sglang_fl.conformance import error_in_units
from sglang_fl.dispatch_log import DispatchLog
from sglang_fl.ops import OPS, Case
from sglang_fl.sglang_adapter.hook import LayerHook
from sglang_fl.sglang_adapter.rotary_embedding import bind
from sglang_fl.startup import configure

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@pytest.fixture(autouse=True, scope="module")
def plugin():
    """Load the plugin into this process."""
    load_plugins()
    with torch.no_grad():
        yield


def rope(head_size: int = 64, is_neox_style: bool = True) -> RotaryEmbedding:
    return RotaryEmbedding(head_size, head_size, 128, 10000, is_neox_style, torch.float32)


def rope_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.arange(3), torch.randn(3, 128), torch.randn(3, 64)


def test_after_one_call_the_forward_method_is_the_kernel():
    layer = SiluAndMul()
    layer(torch.randn(2, 8))
    assert layer._forward_method is OPS["silu_and_mul"].reference


@pytest.mark.parametrize(
    ("layer", "arguments"),
    [(RMSNorm(8), (torch.randn(2, 8),)), (rope(), rope_inputs())],
    ids=["RMSNorm", "RotaryEmbedding"],
)
def test_after_one_call_the_forward_method_stays_the_bound_kernel(layer, arguments):
    layer(*arguments)
    bound = layer._forward_method
    assert bound.__module__.startswith("sglang_fl.sglang_adapter")
    assert "bind" in bound.__qualname__
    layer(*arguments)
    assert layer._forward_method is bound


def test_a_class_without_adapter_keeps_sglangs_own_object():
    layer = GeluAndMul()
    layer(torch.randn(2, 8))
    assert layer._forward_method == layer.forward_native


def test_a_subclass_with_its_own_forward_keeps_sglangs_own_object():
    layer = DeepseekScalingRotaryEmbedding.__new__(DeepseekScalingRotaryEmbedding)
    torch.nn.Module.__init__(layer)
    assert layer._resolve_forward_method() == layer.forward_native


def test_resolving_without_storing_commits_nothing():
    layer = SiluAndMul()
    x = torch.randn(2, 8)
    forward = layer._resolve_forward_method()
    assert torch.equal(forward(x), layer.forward_native(x))
    assert layer._forward_method is None


def test_leaving_torch_compile_restores_the_bound_kernel():
    layer = SiluAndMul()
    layer(torch.randn(2, 8))
    layer.enter_torch_compile(num_tokens=2)
    assert layer._forward_method == layer.forward_native
    layer.leave_torch_compile()
    assert layer._forward_method is OPS["silu_and_mul"].reference


PLAIN = {"hidden_size": 8}
FALLS_THROUGH = {
    "cast_x_before_out_mul": ({**PLAIN, "cast_x_before_out_mul": True}, {}),
    "fp32_residual": ({**PLAIN, "fp32_residual": True}, {"residual": torch.randn(2, 8)}),
    "weightless": ({**PLAIN, "has_weight": False}, {}),
    "variance_size_override": ({**PLAIN, "var_hidden_size": 4}, {}),
    "override_orig_dtype": ({**PLAIN, "override_orig_dtype": torch.bfloat16}, {}),
    "post_residual_addition": (
        PLAIN,
        {"residual": torch.randn(2, 8), "post_residual_addition": torch.randn(2, 8)},
    ),
}


def outputs(result):
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


@pytest.fixture
def own_log(tmp_path: Path, monkeypatch) -> Path:
    """A dispatch log of this test alone; the hook's own has each line once in a process."""
    path = tmp_path / "dispatch.log"
    hook = LayerHook(configure().resolutions, DispatchLog(path))
    resolve = inspect.unwrap(BaseFusedOp._resolve_forward_method)
    monkeypatch.setattr(BaseFusedOp, "_resolve_forward_method", lambda layer: hook(resolve, layer))
    return path


@pytest.mark.parametrize(("options", "call"), FALLS_THROUGH.values(), ids=FALLS_THROUGH.keys())
def test_a_norm_that_the_contract_cannot_express_is_sglangs_and_logged_so(options, call, own_log: Path):
    layer, x = RMSNorm(**options), torch.randn(2, 8)
    native = outputs(layer.forward_native(x, **call))
    assert all(map(torch.equal, outputs(layer(x, **call)), native))
    assert own_log.read_text().splitlines() == ["[OOT-DISPATCH] RMSNorm → sglang(native)"]


@pytest.mark.parametrize("options", [options for options, _ in list(FALLS_THROUGH.values())[:-1]])
def test_a_norm_with_options_that_we_lack_holds_sglangs_own_forward_after_one_call(options):
    layer = RMSNorm(**options)
    layer(torch.randn(2, 8))
    assert layer._forward_method == layer.forward_native


def test_a_norm_is_sglangs_in_batch_invariant_mode(monkeypatch, own_log: Path):
    # Entering the mode as SGLang does needs an accelerator; its flag is what the layers look at.
    monkeypatch.setattr(batch_invariant_ops, "_batch_invariant_MODE", True)
    layer, x = RMSNorm(8), torch.randn(2, 8)
    assert torch.equal(layer(x), layer.forward_native(x))
    assert layer._forward_method == layer.forward_native
    assert own_log.read_text().splitlines() == ["[OOT-DISPATCH] RMSNorm → sglang(native)"]


def test_a_residual_of_another_dtype_is_left_to_sglang(own_log: Path):
    layer, x, residual = RMSNorm(8), torch.randn(2, 8, dtype=torch.bfloat16), torch.randn(2, 8)
    native = layer.forward_native(x, residual)
    assert all(map(torch.equal, layer(x, residual), native))
    assert own_log.read_text().splitlines() == ["[OOT-DISPATCH] RMSNorm → sglang(native)"]


def test_a_norm_is_sglangs_where_it_fuses_quantisation(monkeypatch, own_log: Path):
    monkeypatch.setattr(layernorm, "_flashinfer_rmsnorm_quant_available", True)
    monkeypatch.setattr(layernorm, "_is_static_per_tensor_fp8_linear", lambda method, linear: True)
    linear = torch.nn.Linear(8, 8)
    linear.quant_method, linear.input_scale = object(), torch.ones(1)
    layer, x = RMSNorm(8), torch.randn(2, 8)
    layer.fuse_input_quant(linear)
    assert torch.equal(layer(x), layer.forward_native(x))
    layer.__dict__["_quant_linear"] = None  # what is announced may change after the first call
    layer(x)
    assert own_log.read_text().splitlines() == [
        "[OOT-DISPATCH] RMSNorm → sglang(native)",
        "[OOT-DISPATCH] RMSNorm → reference(reference)",
    ]


def test_a_rotary_embedding_that_must_write_the_kv_cache_is_left_to_sglang():
    layer = rope()
    layer(*rope_inputs())
    with pytest.raises(AssertionError, match="fused_set_kv_buffer_arg is not supported for native"):
        layer(*rope_inputs(), fused_set_kv_buffer_arg=object())


def forward_cuda(positions, query, key, offsets=None, fused_set_kv_buffer_arg=None):
    """Stand for SGLang's own path on CUDA, which rotates in place."""


def test_where_sglang_rotates_in_place_so_do_we():
    layer, (positions, query, key) = rope(), rope_inputs()
    expected = OPS["rotary_embedding"].reference(positions, query, key, layer.cos_sin_cache, 64, True)
    # As models/llama4.py does: views of one tensor go in, and what comes out is not looked at.
    packed = torch.cat((query, key), dim=-1)
    kernel = OPS["rotary_embedding"].reference
    bind(layer, kernel, forward_cuda)(positions, *packed.split([128, 64], dim=-1))
    assert torch.equal(packed, torch.cat(expected, dim=-1))


def test_where_sglang_does_not_one_tensor_for_query_and_key_is_rotated_once():
    layer, (positions, _, key) = rope(), rope_inputs()
    kernel = OPS["rotary_embedding"].reference
    expected = kernel(positions, key, key, layer.cos_sin_cache, 64, True)[1].clone()

    def in_place(positions, query, key, *rest: object):
        rotated = kernel(positions, query, key, *rest)[0]
        query.copy_(rotated)
        key.copy_(kernel(positions, key, key, *rest)[0])
        return query, key

    _, ours = bind(layer, in_place, layer.forward_native)(positions, key, key)
    assert torch.equal(ours, expected)


def test_a_rotary_embedding_uses_rows_that_sglang_picked_beforehand():
    layer, (positions, query, key) = rope(), rope_inputs()
    expected = layer(positions, query.clone(), key.clone())
    layer.sin_cos_cache = layer.cos_sin_cache[positions]
    ours = layer(torch.zeros_like(positions), query, key)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, expected, strict=True))


def test_a_rotary_embedding_reads_a_cache_that_was_replaced():
    layer, (positions, query, key) = rope(), rope_inputs()
    layer(positions, query, key)
    layer.cos_sin_cache = torch.zeros_like(layer.cos_sin_cache)
    assert not any(result.any() for result in layer(positions, query, key))


def test_offsets_are_added_to_the_positions():
    layer, (positions, query, key) = rope(), rope_inputs()
    shifted = layer(positions, query, key, offsets=torch.full_like(positions, 7))
    assert all(map(torch.equal, shifted, layer(positions + 7, query, key)))


def native(op: str, arguments: dict) -> tuple[torch.Tensor, ...]:
    """Call SGLang's ``forward_native`` with the arguments of the contract."""
    if op == "silu_and_mul":
        return outputs(SiluAndMul().forward_native(arguments["x"]))
    if op == "rms_norm":
        layer = RMSNorm(arguments["x"].shape[-1], arguments["eps"], weight_dtype=arguments["weight"].dtype)
        layer.weight.data.copy_(arguments["weight"])
        return outputs(layer.forward_native(arguments["x"], arguments.get("residual")))
    layer = rope(arguments["head_size"], arguments["is_neox_style"])
    layer.rotary_dim = arguments["cos_sin_cache"].shape[-1]
    layer.cos_sin_cache = arguments["cos_sin_cache"]
    keys = ("positions", "query", "key", "offsets")
    return layer.forward_native(*(arguments.get(key) for key in keys))


#: forward_native's bounds in units of the dtype's rounding, from its roundings: the SiLU and the
#: product are rounded; the norm once; rotary rounds cosine or sine, each product, and their sum.
NATIVE_BOUND = {"silu_and_mul": 1.02, "rms_norm": 0.55, "rotary_embedding": 1.6}


def native_size(name: str, arguments: dict, size: torch.Tensor) -> torch.Tensor:
    """Where the SiLU itself is below the dtype's normal range, its rounding is scaled by the factor."""
    if name != "silu_and_mul":
        return size
    up = arguments["x"].chunk(2, dim=-1)[1].double().abs()
    return size.abs().maximum(up * torch.finfo(arguments["x"].dtype).smallest_normal)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "case"),
    # SGLang's forward_native cannot view a query without tokens.
    [
        (name, case)
        for name, op in OPS.items()
        for case in op.cases
        if not (name == "rotary_embedding" and case.name.startswith("empty"))
    ],
    ids=str,
)
def test_reference_is_at_least_as_exact_as_forward_native_promises(name: str, case: Case, dtype):
    op = OPS[name]
    arguments = case.arguments(dtype)
    exact = {
        key: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in arguments.items()
    }
    truth, sizes = outputs(op.reference(**exact)), outputs((op.magnitude or op.reference)(**exact))
    for ours, theirs, exact_value, size in zip(
        outputs(op.reference(**arguments)), native(name, arguments), truth, sizes, strict=True
    ):
        assert error_in_units(ours, exact_value, size) <= op.bound.of(dtype)
        bound = NATIVE_BOUND[name] if dtype is not torch.float32 else op.bound.single
        assert error_in_units(theirs, exact_value, native_size(name, arguments, size)) <= bound

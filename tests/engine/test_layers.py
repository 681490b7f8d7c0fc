"""SGLang's own layer classes under the hook: what is bound, what falls through, how exact it is."""

import pytest
import torch
from sglang.srt.batch_invariant_ops import batch_invariant_ops
from sglang.srt.layers import layernorm
from sglang.srt.layers.activation import GeluAndMul, SiluAndMul
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang.srt.layers.rotary_embedding.rope_variant import DeepseekScalingRotaryEmbedding
from sglang.srt.plugins import load_plugins

from sglang_fl.conformance import error_in_units
from sglang_fl.ops import OPS, Case
from sglang_fl.startup import configure

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@pytest.fixture(autouse=True, scope="module")
def dispatch_log(tmp_path_factory):
    """Load the plugin into this process; return the dispatch log."""
    path = tmp_path_factory.mktemp("layers") / "dispatch.log"
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setenv("SGLANG_FL_DISPATCH_LOG", str(path))
        configure.cache_clear()
        load_plugins()
        yield path


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


@pytest.mark.parametrize(("options", "call"), FALLS_THROUGH.values(), ids=FALLS_THROUGH.keys())
def test_a_norm_that_the_contract_cannot_express_is_sglangs_and_logged_so(options, call, dispatch_log):
    layer, x = RMSNorm(**options), torch.randn(2, 8)
    dispatch_log.write_text("")
    layer._resolve_forward_method()  # the log has each line once in a process
    native = outputs(layer.forward_native(x, **call))
    ours = outputs(layer(x, **call))
    assert all(map(torch.equal, ours, native))
    assert layer._forward_method.__module__ != "sglang_fl.sglang_adapter.rms_norm"


def test_a_norm_falls_through_in_batch_invariant_mode(monkeypatch):
    # Entering the mode as SGLang does needs an accelerator; its flag is what the layers look at.
    monkeypatch.setattr(batch_invariant_ops, "_batch_invariant_MODE", True)
    layer, x = RMSNorm(8), torch.randn(2, 8)
    assert torch.equal(layer(x), layer.forward_native(x))
    assert layer._forward_method.__module__ != "sglang_fl.sglang_adapter.rms_norm"


def test_a_norm_falls_through_where_sglang_fuses_quantisation(monkeypatch):
    monkeypatch.setattr(layernorm, "_flashinfer_rmsnorm_quant_available", True)
    monkeypatch.setattr(layernorm, "_is_static_per_tensor_fp8_linear", lambda method, linear: True)
    linear = torch.nn.Linear(8, 8)
    linear.quant_method, linear.input_scale = object(), torch.ones(1)
    layer = RMSNorm(8)
    layer(torch.randn(2, 8))
    bound, seen = layer._forward_method, []
    monkeypatch.setattr(
        RMSNorm, "forward_native", lambda self, x, *rest: seen.append(rest) or x, raising=True
    )
    plain = RMSNorm(8)
    plain.fuse_input_quant(linear)
    plain(torch.randn(2, 8))
    assert seen == [(None, None, linear)]
    assert bound.__module__ == "sglang_fl.sglang_adapter.rms_norm"


def test_a_rotary_embedding_that_must_write_the_kv_cache_is_left_to_sglang():
    layer = rope()
    layer(*rope_inputs())
    with pytest.raises(AssertionError, match="fused_set_kv_buffer_arg is not supported for native"):
        layer(*rope_inputs(), fused_set_kv_buffer_arg=object())


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

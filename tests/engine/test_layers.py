"""SGLang's own layer classes under the hook: what is bound, what falls through, how exact it is."""

import itertools
from pathlib import Path
from types import MethodType, SimpleNamespace

import pytest
import torch
from sglang.srt.batch_invariant_ops import batch_invariant_ops
from sglang.srt.layers import layernorm
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.conv import Conv2dLayer
from sglang.srt.layers.layernorm import Gemma4RMSNorm, GemmaRMSNorm, RMSNorm
from sglang.srt.layers.rotary_embedding.mrope import Ernie4_5_VLRotaryEmbedding, MRotaryEmbedding

from sglang_fl.conformance import error_in_units
from sglang_fl.dispatch.life import is_ours
from sglang_fl.dispatch.own_path import OwnPath
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.ops import OPS, Case
from sglang_fl.sglang_adapter.layers import ADAPTERS, gemma_rms_norm, rms_norm
from sglang_fl.sglang_adapter.layers.rotary_embedding import bind
from tests.engine.every_layer import OF_ROWS, clones, layers_of_each_class, rope, rope_inputs
from tests.engine.native import native
from tests.engine.release import SEAM, can_force_native, hook_with, present, resolves_in_the_first_call
from tests.ops.subject import subject_of

pytestmark = pytest.mark.usefixtures("plugin")

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("name", ["SiluAndMul", "RMSNorm", "RotaryEmbedding"])
def test_after_one_call_the_forward_method_stays_the_bound_kernel(name: str):
    layer, arguments = layers_of_each_class()[name]
    layer(*arguments)
    bound = layer._forward_method
    assert bound.__func__.__module__.startswith("sglang_fl.sglang_adapter.layers")
    assert bound.__self__ is layer
    layer(*arguments)
    assert layer._forward_method is bound


def test_a_class_without_adapter_keeps_sglangs_own_object():
    layer = Conv2dLayer(3, 4, kernel_size=2, stride=2)
    layer(torch.randn(1, 3, 4, 4))
    assert layer._forward_method == layer.forward_native


def test_a_subclass_with_its_own_forward_keeps_sglangs_own_object():
    layer = Ernie4_5_VLRotaryEmbedding.__new__(Ernie4_5_VLRotaryEmbedding)
    torch.nn.Module.__init__(layer)
    assert getattr(layer, SEAM.method)() == layer.forward_native


def parameters_of(layer: torch.nn.Module) -> None:
    for parameter in layer.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))


@pytest.mark.parametrize("name", layers_of_each_class().keys())
def test_a_layer_of_each_class_runs_on_ours_and_gives_what_sglang_gives(name: str, own_log: Path):
    layer, arguments = layers_of_each_class()[name]
    parameters_of(layer)
    native = outputs(layer.forward_native(*clones(arguments, as_rows=name in OF_ROWS)))
    for _ in range(2):  # the first call, and one that goes straight to the kernel
        ours = outputs(layer(*clones(arguments)))
        for mine, theirs in zip(ours, native, strict=True):
            torch.testing.assert_close(mine, theirs.reshape(mine.shape), rtol=1e-5, atol=1e-5)
    assert own_log.read_text().splitlines() == [
        f"[OOT-DISPATCH] {type(layer).__name__} → reference(reference)"
    ]


@resolves_in_the_first_call
def test_resolving_without_storing_commits_nothing():
    layer = SiluAndMul()
    x = torch.randn(2, 8)
    forward = layer._resolve_forward_method()
    assert torch.equal(forward(x), layer.forward_native(x))
    assert layer._forward_method is None


def test_leaving_torch_compile_restores_the_bound_kernel():
    layer = SiluAndMul()
    layer(torch.randn(2, 8))
    bound = layer._forward_method
    assert is_ours(bound)
    layer.enter_torch_compile(num_tokens=2)
    assert layer._forward_method == layer.forward_native
    layer.leave_torch_compile()
    assert layer._forward_method is bound


PLAIN = {"hidden_size": 8}
FALLS_THROUGH = {
    "override_orig_dtype": (RMSNorm, {**PLAIN, "override_orig_dtype": torch.bfloat16}),
    "scale_shift": (Gemma4RMSNorm, {"dim": 8, "scale_shift": 2.0}),
}


def outputs(result):
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


@pytest.fixture
def own_log(log: Path, monkeypatch) -> Path:
    """A dispatch log of this test alone; the hook's own has each line once in a process."""
    hook_with(DispatchLog(log), monkeypatch)
    return log


@pytest.mark.parametrize(("layer_class", "options"), FALLS_THROUGH.values(), ids=FALLS_THROUGH.keys())
def test_a_norm_that_no_contract_can_express_is_sglangs_and_logged_so(layer_class, options, own_log: Path):
    layer, x = layer_class(**options), torch.randn(2, 8)
    assert torch.equal(layer(x), layer.forward_native(x))
    assert layer._forward_method == layer.forward_native
    assert own_log.read_text().splitlines() == [f"[OOT-DISPATCH] {layer_class.__name__} → sglang(native)"]


class OwnForward:
    """Stands for SGLang's own forward on one of its paths."""

    def __init__(self, path: OwnPath = OwnPath.NATIVE) -> None:
        self.path = path
        self.method = path.value

    def __call__(self, layer: object, *given: object) -> str:
        return "SGLang's"


@pytest.mark.parametrize("bind_norm", [rms_norm.bind, gemma_rms_norm.bind], ids=["rms", "gemma"])
def test_a_third_summand_is_left_to_sglang_where_the_kernel_does_not_take_it(bind_norm):
    layer = RMSNorm(8) if bind_norm is rms_norm.bind else GemmaRMSNorm(8)

    def kernel(x, weight, eps, residual=None):
        return "ours"

    forward = MethodType(bind_norm(layer, kernel, OwnForward()), layer)
    x = torch.randn(2, 8)
    assert forward(x, x, x) == "SGLang's"
    assert [forward(x), forward(x, x), forward(x, None, x)] == ["ours"] * 3


def test_an_mrope_that_must_write_the_kv_cache_is_left_to_sglang():
    layer = MRotaryEmbedding(64, 64, 128, 10000, True, torch.float32, mrope_section=[8, 12, 12])
    with pytest.raises(AssertionError, match="save kv cache is not supported for MRotaryEmbedding"):
        layer(*rope_inputs(), fused_set_kv_buffer_arg=object())


def test_an_mrope_without_sections_is_sglangs(own_log: Path):
    layer = MRotaryEmbedding(64, 64, 128, 10000, True, torch.float32)
    layer(*rope_inputs())
    assert own_log.read_text().splitlines() == ["[OOT-DISPATCH] MRotaryEmbedding → sglang(native)"]


@can_force_native
def test_a_norm_that_sglang_pins_never_asks_us(own_log: Path):
    layer, x = RMSNorm(8, force_native=True), torch.randn(2, 8)
    assert torch.equal(layer(x), layer.forward_native(x))
    assert own_log.read_text() == ""


@pytest.mark.parametrize("op", [op for op in OPS if subject_of(op).layers()])
def test_what_sums_is_sglangs_in_batch_invariant_mode(op: str, monkeypatch, own_log: Path):
    # Entering the mode as SGLang does needs an accelerator; its flag is what the layers look at.
    monkeypatch.setattr(batch_invariant_ops, "_batch_invariant_MODE", True)
    for name, (layer, arguments) in subject_of(op).layers().items():
        wanted = outputs(layer.forward_native(*clones(arguments, as_rows=name in OF_ROWS)))
        for mine, own in zip(outputs(layer(*clones(arguments))), wanted, strict=True):
            torch.testing.assert_close(mine, own.reshape(mine.shape), rtol=1e-5, atol=1e-5)
        ran = "sglang(native)" if OPS[op].may_depend_on_batch else "reference(reference)"
        line = f"[OOT-DISPATCH] {type(layer).__name__} → {ran}"
        assert line in own_log.read_text().splitlines()


def test_every_adapter_of_an_op_that_sums_asks_for_batch_invariant_mode(monkeypatch):
    monkeypatch.setattr(batch_invariant_ops, "_batch_invariant_MODE", True)
    adapters = itertools.chain(*ADAPTERS.values())
    reasons = {adapter.why_not(object()) for adapter in adapters if adapter.op.may_depend_on_batch}
    assert reasons == {"batch-invariant mode"}


def test_these_ops_alone_do_not_sum():
    alone = {"silu_and_mul", "situ_and_mul", "gelu_and_mul", "new_gelu", "quick_gelu", "relu2"}
    alone |= {"rotary_embedding", "mrope", "kv_cache_write", "causal_conv1d_fn", "causal_conv1d_update"}
    assert {name for name, op in OPS.items() if not op.may_depend_on_batch} == alone


def test_a_residual_of_another_dtype_is_left_to_sglang(own_log: Path):
    layer, x, residual = RMSNorm(8), torch.randn(2, 8, dtype=torch.bfloat16), torch.randn(2, 8)
    native = layer.forward_native(x, residual)
    assert all(map(torch.equal, layer(x, residual), native))
    assert own_log.read_text().splitlines() == ["[OOT-DISPATCH] RMSNorm → sglang(native)"]


@present(hasattr(layernorm, "_flashinfer_rmsnorm_quant_available"), "norm that quantises")
def test_a_norm_is_sglangs_where_it_fuses_quantisation(monkeypatch, own_log: Path):
    monkeypatch.setattr(layernorm, "_flashinfer_rmsnorm_quant_available", True)
    monkeypatch.setattr(layernorm, "_is_static_per_tensor_fp8_linear", lambda method, linear: True)
    linear = torch.nn.Linear(8, 8)
    linear.quant_method, linear.input_scale = object(), torch.ones(1)
    layer, x = RMSNorm(8), torch.randn(2, 8)
    given = {}
    if hasattr(layer, "fuse_input_quant"):
        layer.fuse_input_quant(linear)
    else:  # to 0.5.21 a model announces the layer that follows in each call
        given["quant_linear"] = linear
    assert torch.equal(layer(x, **given), layer.forward_native(x))
    layer.__dict__["_quant_linear"] = None  # what is announced may change after the first call
    layer(x)
    assert own_log.read_text().splitlines() == [
        "[OOT-DISPATCH] RMSNorm → sglang(native)",
        "[OOT-DISPATCH] RMSNorm → reference(reference)",
    ]


def test_a_rotary_embedding_that_must_write_the_kv_cache_in_another_way_is_left_to_sglang():
    layer = rope()
    layer(*rope_inputs())
    for of_rocm in (object(), {"key_cache": None}):
        with pytest.raises(AssertionError, match="fused_set_kv_buffer_arg is not supported for native"):
            layer(*rope_inputs(), fused_set_kv_buffer_arg=of_rocm)


def written(slots: int = 8) -> SimpleNamespace:
    """Return SGLang's argument for the keys and values of ``rope_inputs``."""
    pools = {name: torch.zeros(slots, 64) for name in ("k_buffer", "v_buffer")}
    return SimpleNamespace(value=torch.randn(3, 64), cache_loc=torch.tensor([5, 1, 6]), **pools)


def test_a_rotary_embedding_writes_the_kv_cache_where_the_kernel_can():
    layer, argument = rope(), written()
    for _ in range(2):
        argument.k_buffer.zero_()
        _, key = layer(*rope_inputs(), fused_set_kv_buffer_arg=argument)
        assert torch.equal(argument.k_buffer[argument.cache_loc], key)
        assert torch.equal(argument.v_buffer[argument.cache_loc], argument.value)
        assert int(argument.k_buffer.any(1).sum()) == 3


def test_a_kernel_without_the_kv_cache_leaves_such_calls_to_sglang():
    layer = rope()

    def kernel(positions, query, key, cos_sin_cache, head_size, is_neox_style, offsets=None):
        return "ours"

    forward = bind(layer, kernel, OwnForward())
    assert forward(layer, *rope_inputs()) == "ours"
    assert forward(layer, *rope_inputs(), None, written()) == "SGLang's"


def test_where_sglang_rotates_in_place_so_do_we():
    layer, (positions, query, key) = rope(), rope_inputs()
    expected = OPS["rotary_embedding"].reference(positions, query, key, layer.cos_sin_cache, 64, True)
    # As models/llama4.py does: views of one tensor go in, and what comes out is not looked at.
    packed = torch.cat((query, key), dim=-1)
    kernel = OPS["rotary_embedding"].reference
    forward = bind(layer, kernel, OwnForward(OwnPath.CUDA))
    forward(layer, positions, *packed.split([128, 64], dim=-1))
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

    _, ours = bind(layer, in_place, OwnForward())(layer, positions, key, key)
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


#: forward_native's bounds in units of the dtype's rounding, from its roundings: activation and
#: product are rounded; the norm once; rotary rounds cosine or sine, each product, and their sum.
NATIVE_BOUND = {
    "silu_and_mul": 1.02,
    "gelu_and_mul": 1.02,
    "relu2": 0.51,
    "rms_norm": 0.55,
    "rotary_embedding": 1.6,
}


def native_size(name: str, arguments: dict, size: torch.Tensor) -> torch.Tensor:
    """Where the SiLU itself is below the dtype's normal range, its rounding is scaled by the factor."""
    if name != "silu_and_mul":
        return size
    up = arguments["x"].chunk(2, dim=-1)[1].double().abs()
    return size.abs().maximum(up * torch.finfo(arguments["x"].dtype).smallest_normal)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "case"),
    # SGLang's forward_native cannot view a query without tokens, and writes no KV cache.
    [
        (name, case)
        for name, op in OPS.items()
        if name in NATIVE_BOUND
        for case in op.cases
        if not (name == "rotary_embedding" and case.name.startswith(("empty", "kv-cache")))
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
    truth = outputs(op.reference(**exact))
    sizes = outputs(op.magnitude(truth if len(truth) > 1 else truth[0], **exact)) if op.magnitude else truth
    allowed = case.bound or op.bound
    for ours, theirs, exact_value, size in zip(
        outputs(op.reference(**arguments)), native(name, arguments), truth, sizes, strict=True
    ):
        assert error_in_units(ours, exact_value, size) <= allowed.of(ours.dtype)
        bound = max(NATIVE_BOUND[name], allowed.of(theirs.dtype))
        assert error_in_units(theirs, exact_value, native_size(name, arguments, size)) <= bound

"""The life of a layer on SGLang's own classes: excluded calls, other plugins, copies, new weights.

``packages/sglang-fl-core/tests/test_life.py`` has the same without SGLang, case by case.
"""

import copy
import functools
import io
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.attention.linear.gdn_backend import GDNKernelDispatcher
from sglang.srt.layers.attention.linear.utils import LinearAttnKernelBackend
from sglang.srt.layers.layernorm import GemmaRMSNorm, RMSNorm
from sglang.srt.layers.moe import topk
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from torch import Tensor

from sglang_fl.dispatch import faults
from sglang_fl.dispatch.life import MOST_EXCLUDED, is_ours
from sglang_fl.errors import ContractError, UnsupportedError
from sglang_fl.ops import OPS
from sglang_fl.sglang_adapter.layers import ADAPTERS
from tests.engine.every_layer import (
    LAYERS,
    OF_ROWS,
    REFUSING,
    WITH_WEIGHTS,
    clones,
    experts,
    has_router,
    hook_of,
    new_layer,
    put,
    references,
    rope,
    rope_inputs,
    router,
    told,
)


class Refuser:
    """Kernels that compute the references, and refuse while they are told to."""

    def __init__(self) -> None:
        self.refusal: Exception | None = None
        self.module = ModuleType(REFUSING)
        for op in OPS.values():
            setattr(self.module, op.name, self._kernel(op.reference))

    def _kernel(self, reference: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(reference)
        def kernel(*args: Any, **kwargs: Any) -> Any:
            if self.refusal is not None:
                # A new one each time, as kernels do: the traceback of one that is raised again grows.
                raise copy.copy(self.refusal)
            return reference(*args, **kwargs)

        return kernel


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    faults._said.clear()  # each test hears of its own reasons
    with torch.no_grad():
        yield


@pytest.fixture
def refuser(monkeypatch: pytest.MonkeyPatch) -> Refuser:
    refuser = Refuser()
    monkeypatch.setitem(sys.modules, REFUSING, refuser.module)
    from sglang_fl.dispatch import loading

    monkeypatch.setattr(loading, "_loaded", {})
    return refuser


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "dispatch.log"


def test_every_adapter_of_a_layer_class_has_a_layer_here():
    tried = {
        f"{ancestor.__module__}:{ancestor.__qualname__}"
        for layer, *_ in LAYERS.values()
        for ancestor in type(layer).__mro__
    }
    # Methods of objects are no layers; tests of their own.
    layers = {name for name in ADAPTERS if "." not in name.partition(":")[2]}
    layers = {name for name in layers if not name.endswith(":TopK")}
    assert layers - tried == set()


@pytest.mark.parametrize(
    "refusal", [ContractError("float32 beside bfloat16"), UnsupportedError("no such rows")]
)
@pytest.mark.parametrize("name", LAYERS)
def test_an_excluded_call_of_every_adapter_is_sglangs_in_call_1_3_and_1000(
    name: str,
    refusal: Exception,
    refuser: Refuser,
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.INFO, "sglang_fl")
    layer, given, more = new_layer(name)
    sglangs = []
    owner = next(cls for cls in type(layer).__mro__ if "forward_native" in vars(cls))
    native = owner.forward_native

    def forward_native(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not layer:  # SGLang's router, around our kernel
            return native(self, *args, **kwargs)
        sglangs.append(self)
        return "SGLang's own"

    monkeypatch.setattr(owner, "forward_native", forward_native)
    put(hook_of(log), layer)

    def call(refusal: Exception | None) -> Any:
        refuser.refusal = refusal
        return layer._forward_method(*given, **more)

    assert call(refusal) == "SGLang's own"
    first = len(sglangs)
    call(None)
    assert len(sglangs) == first
    assert is_ours(layer._forward_method)
    for _ in range(998):
        assert call(refusal) == "SGLang's own"
    call(None)
    assert told(log) == ["sglang(native)", "flagos(flagos)"]
    assert sum("a call is left to SGLang" in record.getMessage() for record in caplog.records) == 1


DELTA_RULE = {
    "extend": ("chunk_gated_delta_rule", ("q", "k", "v", "g", "beta")),
    "decode": ("fused_sigmoid_gating_delta_rule_update", ("q", "k", "v", "a", "b")),
    "packed_decode": ("fused_recurrent_gated_delta_rule_packed_decode", ("mixed_qkv", "a", "b")),
}


def call_of(method: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a call of one of SGLang's kernels of the gated delta rule, from a case of its op."""
    op, positional = DELTA_RULE[method]
    case = next(case for case in OPS[op].cases if not case.name.startswith("empty"))
    given = case.arguments(torch.float32)
    more = {"ssm_states": given["initial_state"], "cache_indices": given["initial_state_indices"]}
    if "cu_seqlens" in given:
        more["query_start_loc"] = given["cu_seqlens"]
    more |= {name: given[name] for name in ("A_log", "dt_bias") if name in given}
    if method == "packed_decode":
        more["scale"] = given["scale"]
    return tuple(given[name] for name in positional), more


@pytest.mark.parametrize("name", DELTA_RULE)
def test_an_excluded_call_of_the_gated_delta_rule_is_sglangs_in_call_1_3_and_1000(
    name: str, refuser: Refuser, log: Path, monkeypatch: pytest.MonkeyPatch
):
    triton = LinearAttnKernelBackend.TRITON
    dispatcher = GDNKernelDispatcher(triton, triton)
    kernel = dispatcher.extend_kernel if name == "extend" else dispatcher.decode_kernel
    sglangs = []
    monkeypatch.setattr(type(kernel), name, lambda self, *args, **kwargs: sglangs.append((args, kwargs)))
    hook = hook_of(log)
    hook.replace_methods(SimpleNamespace(linear_attn_backend=SimpleNamespace(kernel_dispatcher=dispatcher)))
    args, kwargs = call_of(name)
    for number in range(1, 1001):
        refuser.refusal = None if number == 2 else ContractError("not these states")
        assert (getattr(kernel, name)(*args, **kwargs) is not None) == (number == 2)
    assert len(sglangs) == 999
    assert sglangs[0][1].keys() == kwargs.keys()
    assert told(log) == ["sglang(native)", "flagos(flagos)"]


@pytest.mark.parametrize("layer_class", [RMSNorm, GemmaRMSNorm])
def test_a_float32_residual_beside_bfloat16_is_sglangs_in_every_call(layer_class: Any, log: Path):
    x, wide = torch.randn(2, 8, dtype=torch.bfloat16), torch.randn(2, 8)
    layer = put(references(log), layer_class(8))
    native = [result.clone() for result in layer.forward_native(x.clone(), wide.clone())]
    for number in range(1000):
        if number == 1:
            layer._forward_method(x.clone(), x.clone())
        elif number in (0, 2, 999):
            got = layer._forward_method(x.clone(), wide.clone())
            assert all(map(torch.equal, got, native))
    assert told(log) == ["sglang(native)", "reference(reference)"]


def test_a_norm_whose_residual_is_always_float32_is_given_back(log: Path):
    layer = put(references(log), RMSNorm(8))
    for _ in range(MOST_EXCLUDED):
        layer._forward_method(torch.randn(2, 8, dtype=torch.bfloat16), torch.randn(2, 8))
    assert layer._forward_method == layer.forward_native


def anonymous(own: Callable[..., Any]) -> Callable[..., Any]:
    def around(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    return around


def named(own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def around(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    around.__name__ = "forward_by_another_plugin"
    return around


class Holder:
    """Another plugin's callable object."""

    def __init__(self, own: Callable[..., Any]) -> None:
        self._own = own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._own(*args, **kwargs)


AROUND = {
    "nothing": lambda own: own,
    "partial": functools.partial,
    "partial of the function": lambda own: functools.partial(own.__func__, own.__self__),
    "a wrapper with another name": named,
    "a wrapper that names nothing": anonymous,
    "a default argument": lambda own: lambda *args, _own=own, **kwargs: _own(*args, **kwargs),
    "an object": Holder,
    "one around the other": lambda own: anonymous(functools.partial(named(own))),
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_what_another_plugin_puts_around_sglangs_forward_changes_nothing(around: Any, log: Path):
    layer, (positions, query, key) = rope(), rope_inputs()
    expected = OPS["rotary_embedding"].reference(positions, query, key, layer.cos_sin_cache, 64, True)
    put(references(log), layer, lambda layer: around(layer.forward_cuda))
    packed = torch.cat((query, key), dim=-1)
    for _ in range(2):
        again = packed.clone()
        layer._forward_method(positions, *again.split([128, 64], dim=-1))
        assert torch.equal(again, torch.cat(expected, dim=-1))  # in place, as SGLang's path on CUDA
    assert told(log) == ["reference(reference)"]


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_experts_are_scaled_once_whatever_is_put_around_sglangs_forward(around: Any):
    results = {}
    for path in ("forward_native", "forward_cuda"):
        torch.manual_seed(0)
        method, call = experts()
        method.moe_runner_config.routed_scaling_factor = 2.0
        put(references(), method, lambda layer, path=path: around(getattr(layer, path)))
        results[path] = method._forward_method(**call).hidden_states
    # On the plain path the model multiplies by the factor, on CUDA SGLang's runner does.
    assert torch.allclose(results["forward_cuda"], 2 * results["forward_native"])


def test_a_forward_behind_which_no_method_is_found_is_left_to_sglang_and_said(
    log: Path, caplog: pytest.LogCaptureFixture
):
    layer = put(references(log), SiluAndMul(), lambda layer: lambda x: "another plugin's")
    assert layer._forward_method(torch.randn(2, 8)) == "another plugin's"
    assert not is_ours(layer._forward_method)
    assert "SiluAndMul: left to SGLang: its forward is <function" in caplog.text
    assert told(log) == ["sglang(native)"]


class Foreign(RMSNorm):
    """A layer that an adapter covers by its ancestry and does not understand."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)


def test_an_adapter_that_raises_on_a_foreign_layer_leaves_it_to_sglang(
    log: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(RMSNorm, "forward_native", lambda self, x: "SGLang's own")
    for _ in range(2):
        layer = put(references(log), Foreign())
        assert layer._forward_method(torch.randn(2, 8)) == "SGLang's own"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert (
        "Foreign: left to SGLang: its adapter raised AttributeError: 'Foreign' object has no" in caplog.text
    )
    with pytest.raises(AttributeError, match="'Foreign' object has no attribute"):
        put(references(log, strict=True), Foreign())._forward_method(torch.randn(2, 8))


def test_a_class_that_cannot_be_looked_at_is_left_to_sglang(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    from sglang_fl.sglang_adapter import hook as module

    def broken(*_: Any) -> Any:
        raise TypeError("unhashable type: 'Meta'")

    monkeypatch.setattr(module, "_adapters_of", broken)
    layer = put(references(), SiluAndMul())
    assert layer._forward_method == layer.forward_native
    assert "SiluAndMul is left to SGLang: TypeError: unhashable" in caplog.text
    with pytest.raises(TypeError, match="unhashable"):
        put(references(strict=True), SiluAndMul())


@pytest.mark.parametrize("calls", [0, 1, 2])
@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_a_copy_of_a_layer_computes_with_its_own_weights(name: str, calls: int):
    layer, given, more = new_layer(name)
    put(references(), layer)
    for _ in range(calls):
        layer._forward_method(*clones(given), **more)
    twin = copy.deepcopy(layer)
    for parameter in twin.parameters():
        parameter.data.add_(1.5 * torch.rand_like(parameter))
    for _ in range(2):
        mine, theirs = (each._forward_method(*clones(given), **more) for each in (twin, layer))
        native = twin.forward_native(*clones(given, as_rows=name in OF_ROWS), **more)
        assert not torch.equal(flat(mine)[0], flat(theirs)[0])
        assert torch.allclose(flat(mine)[0].flatten(), flat(native)[0].flatten(), atol=1e-5)


def flat(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.parametrize("name", ["RMSNorm", "RotaryEmbedding", "SiluAndMul"])
def test_a_layer_can_be_saved_and_loaded_as_without_the_plugin(name: str, calls: int):
    layer, given, _ = new_layer(name)
    put(references(), layer)
    for _ in range(calls):
        layer._forward_method(*clones(given))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded._forward_method == loaded.forward_native
    ours = flat(layer._forward_method(*clones(given)))
    assert all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(flat(loaded(*clones(given))), ours, strict=True)
    )


@pytest.mark.parametrize("way", ["in place", "data", "parameter"])
@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_weights_that_are_replaced_between_two_calls_are_used(name: str, way: str):
    layer, given, more = new_layer(name)
    put(references(), layer)
    before = flat(layer._forward_method(*clones(given), **more))[0].clone()
    for parameter_name, parameter in list(layer.named_parameters()):
        new = parameter.data + 1 + torch.rand_like(parameter)
        if way == "in place":
            parameter.data.copy_(new)
        elif way == "data":
            parameter.data = new
        else:
            setattr(layer, parameter_name, torch.nn.Parameter(new, requires_grad=False))
    after = flat(layer._forward_method(*clones(given), **more))[0]
    assert not torch.equal(before, after)
    fresh = put(references(), copy.deepcopy(layer))
    assert torch.equal(after, flat(fresh._forward_method(*clones(given), **more))[0])


def test_the_weights_of_experts_are_those_of_the_call():
    method, call = experts()
    put(references(), method)
    before = method._forward_method(**call).hidden_states
    call["layer"].w2_weight = 2 * call["layer"].w2_weight
    assert torch.allclose(method._forward_method(**call).hidden_states, 2 * before)


@has_router
def test_a_router_reads_its_configuration_in_each_call():
    layer, x = put(references(), router("sigmoid", bias=torch.zeros(6))), torch.randn(3, 8)
    logits = torch.tensor([[5.0, 4, 3, 2, 1, 0]] * 3)

    def chosen() -> list[int]:
        return sorted(layer._forward_method(x, logits).topk_ids[0].tolist())

    assert chosen() == [0, 1]
    layer.topk_config.correction_bias = torch.tensor([0.0, 0, 0, 0, 9, 9])
    assert chosen() == [4, 5]
    layer.topk_config.correction_bias.copy_(torch.tensor([9.0, 0, 9, 0, 0, 0]))
    assert chosen() == [0, 2]
    layer.topk_config.top_k = 3
    assert len(chosen()) == 3
    layer.topk_config = topk.TopKConfig(
        top_k=1, scoring_func="sigmoid", output_format=topk.TopKOutputFormat.STANDARD
    )
    assert chosen() == [0]


@has_router
@pytest.mark.parametrize(("first", "then"), [("softmax", "sigmoid"), ("sigmoid", "softmax")])
def test_a_router_whose_sort_of_scores_changes_is_sglangs_from_then_on(first: str, then: str):
    layer, x = put(references(), router(first)), torch.randn(3, 8)
    logits = torch.tensor([[3.0, 2, 1, 0, -1, -2]] * 3)
    layer._forward_method(x, logits)
    layer.topk_config.scoring_func = then
    got = layer._forward_method(x, logits)
    expected = type(layer).forward_native(copy.copy(layer), x, logits)
    assert torch.equal(got.topk_weights, expected.topk_weights)
    assert torch.equal(got.topk_ids, expected.topk_ids)


@has_router
def test_a_router_that_gets_what_no_contract_can_express_is_sglangs_from_then_on(monkeypatch):
    layer, x, logits = put(references(), router("softmax")), torch.randn(3, 8), torch.randn(3, 6)
    layer._forward_method(x, logits)
    routed = []

    def custom(hidden_states: Any, gating_output: Any, topk: int, renormalize: bool) -> Any:
        routed.append(topk)
        return torch.ones(3, topk), torch.zeros(3, topk, dtype=torch.int32)

    layer.topk_config.custom_routing_function = custom
    layer._forward_method(x, logits)
    assert routed == [2]


@has_router
def test_a_call_that_sglang_routes_at_random_is_sglangs(monkeypatch: pytest.MonkeyPatch, log: Path):
    layer, sglangs = router("sigmoid", bias=torch.randn(6)), []
    native = topk.TopK.forward_native

    def forward_native(self: Any, *args: Any, **given: Any) -> Any:
        return sglangs.append((self, given)) if self is layer else native(self, *args, **given)

    monkeypatch.setattr(topk.TopK, "forward_native", forward_native)
    put(references(log), layer)
    x, logits = torch.randn(3, 8), torch.randn(3, 6)
    layer._forward_method(x, logits)
    info = SimpleNamespace(ep_dispatch_algorithm="fake")
    layer._forward_method(x, logits, expert_location_dispatch_info=info)
    assert sglangs == [(layer, {"expert_location_dispatch_info": info})]


def test_a_rotary_embedding_that_always_writes_the_kv_cache_is_given_back(monkeypatch, log: Path):
    monkeypatch.setattr(RotaryEmbedding, "forward_native", lambda *_: "SGLang's own")
    layer = put(references(log), rope())
    for _ in range(MOST_EXCLUDED):
        assert layer._forward_method(*rope_inputs(), fused_set_kv_buffer_arg=object()) == "SGLang's own"
    assert layer._forward_method == layer.forward_native

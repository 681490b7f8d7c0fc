"""What takes the place of SGLang's Triton kernels where none can run, beside the ops' own tests."""

import contextlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.version import Version
from sglang.srt.layers.attention.linear.gdn_backend import GDNAttnBackend, GDNKernelDispatcher
from sglang.srt.layers.attention.linear.utils import LinearAttnKernelBackend
from sglang.srt.plugins.hook_registry import HookRegistry

from sglang_fl.errors import SettingsError, UnsupportedError
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.ops import OPS
from sglang_fl.platform import cpu_where_none_is_named
from sglang_fl.sglang_adapter.hook import LayerHook
from sglang_fl.sglang_adapter.methods import TARGET, methods_of
from sglang_fl.sglang_adapter.releases import WITHOUT_TRITON
from sglang_fl.sglang_adapter.without_triton import gated_delta_net, gated_norm, gates, names
from sglang_fl.sglang_adapter.without_triton.convolution import prefill_by, update_by
from sglang_fl.sglang_adapter.without_triton.kernels import CausalConvolution, StateSpace
from sglang_fl.sglang_adapter.without_triton.state_space import scan_by, state_update_by
from sglang_fl.startup import configure
from tests.engine.release import RELEASE, present

pytestmark = present(RELEASE in WITHOUT_TRITON, "names that we replace where no Triton kernel can run")

MODULE = "sglang.srt.layers.attention.linear.gdn_backend"
METHODS = [
    "CausalConvolution.prefill",
    "CausalConvolution.update",
    "StateSpace.scan",
    "StateSpace.update",
    "TritonGDNKernel.extend",
    "TritonGDNKernel.decode",
    "TritonGDNKernel.packed_decode",
]


@pytest.fixture
def restored(monkeypatch):
    """Put the names back that a test lets be replaced."""
    functions = {**names._OF_ALL_MODELS, **names._OF_LINEAR_ATTENTION}
    for module, others in functions.items():
        for other in others if module in sys.modules else ():
            own = getattr(sys.modules[module], other.__name__)
            monkeypatch.setattr(sys.modules[module], other.__name__, own)
    for name in ("causal_conv1d_fn", "causal_conv1d_update"):
        monkeypatch.setattr(sys.modules[MODULE], name, getattr(sys.modules[MODULE], name))
    mixer = sys.modules[names._MIXER]
    for name in ("mamba_chunk_scan_combined", "selective_state_update"):
        monkeypatch.setattr(mixer, name, getattr(mixer, name))
    for name in ("causal_conv1d_fn", "causal_conv1d_update"):
        for bound in (name, f"{name}_triton"):
            monkeypatch.setattr(mixer, bound, getattr(mixer, bound, None), raising=False)


def backend_of(linear: type, **parts: Any) -> Any:
    """Return a backend of a hybrid model, with an object of a class that never was constructed."""
    made = object.__new__(linear)
    vars(made).update(parts)
    return SimpleNamespace(linear_attn_backend=made)


def with_delta_rule() -> Any:
    triton = LinearAttnKernelBackend.TRITON
    return backend_of(GDNAttnBackend, kernel_dispatcher=GDNKernelDispatcher(triton, triton))


def test_every_name_is_one_of_sglangs(restored):
    """They are replaced in each model's process, so a name that is gone would end every start."""
    for module in {**names._OF_ALL_MODELS, **names._OF_LINEAR_ATTENTION}:
        __import__(module)
    backend = with_delta_rule()
    names.replace(backend, RELEASE)
    for module, others in {**names._OF_ALL_MODELS, **names._OF_LINEAR_ATTENTION}.items():
        assert [getattr(sys.modules[module], other.__name__) for other in others] == list(others)
    assert [method.title for method in methods_of(backend)] == METHODS
    assert all(method.is_pytorch for method in methods_of(backend))


def test_a_model_without_linear_attention_keeps_those_of_linear_attention(restored):
    own = sys.modules[MODULE].causal_conv1d_fn
    backend = SimpleNamespace()
    names.replace(backend, RELEASE)
    assert sys.modules[MODULE].causal_conv1d_fn is own
    assert list(methods_of(backend)) == []


def test_linear_attention_of_another_kind_is_refused(restored):
    own = sys.modules[MODULE].causal_conv1d_fn
    with pytest.raises(SettingsError, match=r"KDAAttnBackend: this model's linear attention launches Triton"):
        names.replace(backend_of(type("KDAAttnBackend", (), {})), RELEASE)
    assert sys.modules[MODULE].causal_conv1d_fn is own


def test_an_earlier_release_is_refused_by_name():
    with pytest.raises(SettingsError, match=r"with SGLang 0\.5\.23, not with 0\.5\.21"):
        names.replace(with_delta_rule(), Version("0.5.21"))
    names.replace(SimpleNamespace(), Version("0.5.21"))


@pytest.mark.parametrize("has_triton", [False, True])
def test_nothing_is_hooked_on_a_platform_that_runs_triton(has_triton: bool, monkeypatch):
    from sglang.srt import platforms

    from sglang_fl.sglang_adapter.cpu_platform import CpuPlatform

    hooked = []
    monkeypatch.setattr(HookRegistry, "register", lambda target, *given: hooked.append(target))
    monkeypatch.setattr(platforms, "_current_platform", object() if has_triton else CpuPlatform())
    names.install(RELEASE, contextlib.nullcontext)
    assert hooked == ([] if has_triton else [TARGET, names._KEEPS_MORE_STATES])


def test_layer_2_is_asked_for_the_convolution(restored, tmp_path):
    """SGLang's functions find what layer 2 put on the object after they were put in their places."""
    log = tmp_path / "dispatch.log"
    backend = with_delta_rule()
    names.replace(backend, RELEASE)
    LayerHook(configure().resolutions, DispatchLog(log)).replace_methods(backend)
    given = call_of("causal_conv1d_fn", "mixed")
    expected = OPS["causal_conv1d_fn"].reference(**call_of("causal_conv1d_fn", "mixed"))
    result = sys.modules[MODULE].causal_conv1d_fn(**given, seq_lens_cpu=[5, 1, 70, 2], pad_slot_id=-1)
    assert torch.equal(result, expected)
    assert log.read_text().splitlines() == ["[OOT-DISPATCH] CausalConvolution.prefill → reference(reference)"]


def call_of(op: str, case: str) -> dict[str, Any]:
    found = next(known for known in OPS[op].cases if known.name == case)
    return found.arguments(torch.float32)


def test_sglangs_words_for_an_activation_mean_the_same():
    prefill, update = prefill_by(CausalConvolution()), update_by(CausalConvolution())
    given = call_of("causal_conv1d_update", "odd-requests")
    given["conv_state"] = given.pop("conv_states")
    for function, arguments in ((prefill, call_of("causal_conv1d_fn", "mixed")), (update, given)):
        results = {}
        for word in (None, False, True, "silu", "swish"):
            results[word] = function(**clones(arguments) | {"activation": word})
        assert torch.equal(results[None], results[False])
        assert all(torch.equal(results["silu"], results[word]) for word in (True, "swish"))
        assert not torch.equal(results[None], results["silu"])


def clones(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: v.clone() if isinstance(v, torch.Tensor) else v for name, v in arguments.items()}


def test_sequences_begin_without_a_state_where_sglang_names_none():
    given = call_of("causal_conv1d_fn", "first-chunks")
    expected = prefill_by(CausalConvolution())(**clones(given))
    del given["has_initial_state"]
    assert torch.equal(prefill_by(CausalConvolution())(**given), expected)


def test_what_the_ops_cannot_express_is_an_error():
    prefill, update = prefill_by(CausalConvolution()), update_by(CausalConvolution())
    given = call_of("causal_conv1d_update", "odd-requests")
    given["conv_state"] = given.pop("conv_states")
    with pytest.raises(UnsupportedError, match="drafted tokens"):
        update(**given | {"x": given["x"].unsqueeze(-1)})
    with pytest.raises(UnsupportedError, match="with intermediate_conv_window"):
        update(**given, intermediate_conv_window=torch.zeros(1))
    with pytest.raises(UnsupportedError, match="with validate_data"):
        prefill(**call_of("causal_conv1d_fn", "mixed"), validate_data=True)
    with pytest.raises(UnsupportedError, match="the activation 'gelu'"):
        prefill(**call_of("causal_conv1d_fn", "mixed") | {"activation": "gelu"})
    with pytest.raises(UnsupportedError, match="the check of drafted tokens"):
        gated_delta_net.fused_sigmoid_gating_delta_rule_update(
            **dict.fromkeys(("A_log", "a", "dt_bias", "q", "k", "v", "b")),
            **dict.fromkeys(("initial_state_source", "initial_state_indices", "cu_seqlens")),
            disable_state_update=True,
        )


def test_the_delta_rule_runs_where_layer_2_is_off(restored):
    """SGLang's kernel object calls the replaced functions with SGLang's arguments."""
    backend = with_delta_rule()
    names.replace(backend, RELEASE)
    kernel = backend.linear_attn_backend.kernel_dispatcher.decode_kernel
    for method, op, positional in (
        ("extend", "chunk_gated_delta_rule", ("q", "k", "v", "g", "beta")),
        ("decode", "fused_sigmoid_gating_delta_rule_update", ("q", "k", "v", "a", "b")),
        ("packed_decode", "fused_recurrent_gated_delta_rule_packed_decode", ("mixed_qkv", "a", "b")),
    ):
        case = next(known for known in OPS[op].cases if known.name in ("several-sequences", "odd-requests"))
        given, known = case.arguments(torch.float32), case.arguments(torch.float32)
        states = {"ssm_states": given["initial_state"], "cache_indices": given["initial_state_indices"]}
        if "cu_seqlens" in given:
            states["query_start_loc"] = given["cu_seqlens"]
        more = {name: given[name] for name in ("A_log", "dt_bias") if name in given}
        if method == "packed_decode":
            heads, values = given["initial_state"].shape[1:3]
            more |= {"scale": given["scale"], "num_v_heads": heads, "head_v_dim": values}
        found = getattr(kernel, method)(*(given[name] for name in positional), **more, **states)
        expected = OPS[op].reference(**known)
        if method == "extend":
            assert found[1] is None
            torch.testing.assert_close((found[0], found[2]), expected)
        else:
            torch.testing.assert_close(found.flatten(), expected.flatten())
        assert torch.equal(given["initial_state"], known["initial_state"])


def test_mamba_2_gets_per_head_what_sglang_expands_to_elements():
    given = call_of("selective_state_update", "odd-requests")
    known = clones(given)
    expected = OPS["selective_state_update"].reference(**known)
    elements, states = given["state"].shape[2:]
    out = torch.empty_like(given["x"])
    call = {
        "dt": given["dt"][..., None].expand(-1, -1, elements),
        "A": given["A"][:, None, None].expand(-1, elements, states),
        "D": given["D"][:, None].expand(-1, elements),
        "dt_bias": given["dt_bias"][:, None].expand(-1, elements),
    }
    update = state_update_by(StateSpace())
    update(**given | call, out=out, z=None, dt_softplus=True)
    assert torch.equal(out, expected)
    assert torch.equal(given["state"], known["state"])
    with pytest.raises(UnsupportedError, match="steps that differ within a head"):
        update(**given | call | {"dt": call["dt"].clone()}, out=out)
    with pytest.raises(UnsupportedError, match="drafted tokens"):
        update(**given | call, out=out, disable_state_update=True)


def test_mamba_2_begins_without_states_where_sglang_gives_none():
    given = call_of("mamba_chunk_scan_combined", "no-states")
    y, states = OPS["mamba_chunk_scan_combined"].reference(**given)
    out = torch.empty_like(given["x"])
    call = {"initial_states": None, "out": out, "state_dtype": torch.float32, "chunk_size": 32}
    found = scan_by(StateSpace())(**given | call)
    assert found[0] is found[2] is None
    assert torch.equal(found[1], states)
    assert torch.equal(out, y)
    with pytest.raises(UnsupportedError, match="a limit of its steps"):
        scan_by(StateSpace())(**given | call, dt_limit=(0.0, 0.1))


def test_items_scored_at_once_leave_the_pool_as_it_is():
    given = call_of("chunk_gated_delta_rule", "several-sequences")
    scale = given.pop("scale")
    before = given["initial_state"].clone()
    o, _, _ = gated_delta_net.chunk_gated_delta_rule(**given, inplace_update=False)
    assert torch.equal(given["initial_state"], before)
    assert torch.equal(o, OPS["chunk_gated_delta_rule"].reference(**given, scale=scale)[0])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_gates_of_the_delta_rule_are_those_of_the_decoding_op():
    A_log, dt_bias, a, b = normal(4), normal(4, seed=1), normal(3, 4, seed=2), normal(3, 4, seed=3)
    decay, rate = gated_delta_net.fused_gdn_gating(A_log, a, b, dt_bias)
    expected = -A_log.exp() * torch.log1p((a + dt_bias).exp())
    torch.testing.assert_close(decay, expected[None])
    torch.testing.assert_close(rate, (1 / (1 + (-b).exp()))[None])
    assert decay.dtype == rate.dtype == torch.float32


def test_projections_are_sorted_as_sglangs_own_model_sorts_them():
    """``fix_query_key_value_ordering`` is the path that SGLang takes where its kernel does not fit."""
    from sglang.srt.models.qwen3_next import Qwen3GatedDeltaNet

    heads, value_heads, keys, values, tokens = 2, 4, 3, 5, 7
    sizes = {"num_k_heads": heads, "num_v_heads": value_heads, "head_k_dim": keys, "head_v_dim": values}
    model = SimpleNamespace(**sizes, attn_tp_size=1)
    qkvz = normal(tokens, 2 * heads * keys + 2 * value_heads * values)
    ba = normal(tokens, 2 * value_heads, seed=1)
    q, k, v, *rest = Qwen3GatedDeltaNet.fix_query_key_value_ordering(model, qkvz, ba)
    mixed = torch.cat([part.flatten(1) for part in (q, k, v)], dim=-1)
    found = gated_delta_net.fused_qkvzba_split_reshape_cat(qkvz, ba, heads, value_heads, keys, values)
    assert all(torch.equal(one, other) for one, other in zip(found, (mixed, *rest), strict=True))


def test_gated_norms_are_what_they_are_defined_as():
    x, z, weight = normal(3, 8), normal(3, 8, seed=1), normal(8, seed=2)
    silu = z / (1 + (-z).exp())

    def normed(given: torch.Tensor, size: int) -> torch.Tensor:
        groups = given.unflatten(-1, (-1, size))
        return (groups / (groups.square().mean(-1, keepdim=True) + 1e-3).sqrt()).flatten(-2)

    expected = normed(x, 8) * weight * silu
    torch.testing.assert_close(gated_norm.rms_norm_gated(x, z, weight, None, eps=1e-3), expected)
    given = {"eps": 1e-3, "is_rms_norm": True}
    torch.testing.assert_close(gated_norm.layernorm_fn(x, weight, None, z, **given), expected)
    found = gated_norm.layernorm_fn(x, weight, None, z, group_size=4, norm_before_gate=False, **given)
    torch.testing.assert_close(found, normed(x * silu, 4) * weight)
    found = gated_norm.rms_norm_gated(x, z, None, None, activation="sigmoid", eps=1e-3)
    torch.testing.assert_close(found, normed(x, 8) / (1 + (-z).exp()))
    with pytest.raises(UnsupportedError, match="with a bias"):
        gated_norm.layernorm_fn(x, weight, weight, z, is_rms_norm=True)


def test_gates_of_shared_experts_and_of_attention():
    hidden, weight, shared, total = (
        normal(3, 8),
        normal(8, seed=1),
        normal(3, 6, seed=2),
        normal(3, 6, seed=3),
    )
    gate = 1 / (1 + (-(hidden @ weight)).exp())[:, None]
    torch.testing.assert_close(gates.fused_gate_sigmoid_mul(hidden, weight, shared), gate * shared)
    expected = total + gate * shared
    gates.fused_gate_sigmoid_mul_add(hidden, weight, shared, total)
    torch.testing.assert_close(total, expected)
    by_head = normal(3, 4, 4, seed=4)[..., :2]
    found = gates.fused_sigmoid_mul(hidden, by_head)
    torch.testing.assert_close(found, hidden / (1 + (-by_head.flatten(1)).exp()))
    assert gates.fused_sigmoid_mul(hidden, by_head, inplace=True) is hidden
    torch.testing.assert_close(hidden, found)


def test_a_cpu_is_the_device_where_none_is_named():
    device_module = cpu_where_none_is_named(torch.get_device_module)
    assert device_module() is torch.cpu
    assert device_module("cuda") is torch.cuda

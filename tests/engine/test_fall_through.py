"""What no contract can express is SGLang's: on-policy training, LoRA, speculative decoding, torch.compile.

``test_layers`` has the options of single layers and calls. No engine: SGLang's LoRA pins memory, and its
linear attention needs Triton kernels, so neither runs on a CPU host; its classes do.
"""

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers import activation
from sglang.srt.layers.activation import SiluAndMul
from sglang.srt.layers.attention.linear.gdn_backend import GDNKernelDispatcher
from sglang.srt.layers.attention.linear.utils import LinearAttnKernelBackend
from sglang.srt.layers.layernorm import LayerNorm, RMSNorm
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang.srt.lora.layers import FusedMoEWithLoRA, get_lora_layer
from sglang.srt.plugins.hook_registry import HookRegistry

from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.sglang_adapter import seams
from sglang_fl.sglang_adapter.hook import LayerHook
from sglang_fl.sglang_adapter.loaded_models import LoadedModels
from tests.engine.dispatch_lines import told
from tests.engine.release import can_force_native, hook_with

pytestmark = pytest.mark.usefixtures("plugin")


@pytest.fixture
def hook(log: Path, monkeypatch) -> LayerHook:
    """A hook whose dispatch log is of this test alone."""
    return hook_with(DispatchLog(log), monkeypatch)


def settle(log: Path, *layers: torch.nn.Module) -> None:
    HookRegistry.reset()
    models = LoadedModels({}, DispatchLog(log), seams.installed_version())
    models.settle(torch.nn.ModuleList(layers))


def test_on_policy_training_pins_layers_and_the_log_tells_of_them_when_they_have_run(
    hook, log: Path, monkeypatch
):
    published = SimpleNamespace(deterministic=SimpleNamespace(rl_on_policy_target="fsdp"))
    monkeypatch.setattr(activation, "publish_role", lambda: "scheduler", raising=False)
    monkeypatch.setattr(activation, "get_exec", lambda: published)
    layer, x = SiluAndMul(), torch.randn(2, 8)
    settle(log, layer)
    assert told(log) == []
    assert torch.equal(layer(x), layer.forward_native(x))
    assert layer._forward_method == layer.forward_native
    assert told(log) == ["SiluAndMul → sglang(pinned)"]


@can_force_native
def test_a_forced_native_norm_stays_native_and_the_log_tells_of_it(hook, log: Path):
    layer, x = RMSNorm(8, force_native=True), torch.randn(2, 8)
    settle(log, layer)
    assert torch.equal(layer(x), layer.forward_native(x))
    assert told(log) == ["RMSNorm → sglang(pinned)"]


def test_a_layer_whose_forward_a_model_has_replaced_is_told_of_as_pinned(hook, log: Path):
    layer, x = SiluAndMul(), torch.randn(2, 8)
    layer.forward = layer.forward_native  # as models/longcat_flash.py does with its TopK
    settle(log, layer)
    layer(x)
    assert layer.forward == layer.forward_native
    assert told(log) == ["SiluAndMul → sglang(pinned)"]


def test_layers_that_nobody_pinned_are_ours_after_the_model_was_loaded(hook, log: Path):
    layer = SiluAndMul()
    settle(log, layer)
    layer(torch.randn(2, 8))
    assert told(log) == ["SiluAndMul → reference(reference)"]


@pytest.mark.parametrize("called_before", [False, True], ids=["new", "bound"])
def test_while_compiled_a_layer_runs_sglangs_native_path_and_the_log_tells_of_it(
    hook, log: Path, called_before: bool, monkeypatch
):
    layer, x, calls = SiluAndMul(), torch.randn(2, 8), []
    if called_before:
        layer(x)
    before = told(log)

    def forward_native(self, given):
        calls.append(given)
        return given

    monkeypatch.setattr(SiluAndMul, "forward_native", forward_native)
    layer.enter_torch_compile(num_tokens=2)
    hook.tell_of_torch_compile(None, layer, num_tokens=2)
    assert layer(x) is x
    layer.leave_torch_compile()
    assert len(calls) == 1
    assert told(log) == [*before, "SiluAndMul → sglang(torch.compile)"]


def test_the_plugin_hears_of_layers_that_enter_torch_compile():
    wrapper = SiluAndMul.enter_torch_compile
    held = inspect.getclosurevars(wrapper).nonlocals.values()
    assert any(getattr(hook, "__func__", None) is LayerHook.tell_of_torch_compile for hook in held)


ADAPTED = {
    "SiluAndMul": SiluAndMul,
    "RMSNorm": lambda: RMSNorm(8),
    "LayerNorm": lambda: LayerNorm(8),
    "RotaryEmbedding": lambda: RotaryEmbedding(8, 8, 16, 100, True, torch.float32),
}


@pytest.mark.parametrize("make", ADAPTED.values(), ids=ADAPTED)
def test_lora_never_wraps_a_layer_that_we_run(make):
    with pytest.raises(Exception, match="No corresponding LoRA layer supported"):
        get_lora_layer(make(), None)


def test_lora_on_experts_stays_sglangs_and_is_logged_so(log: Path):
    experts = FusedMoEWithLoRA.__new__(FusedMoEWithLoRA)
    torch.nn.Module.__init__(experts)

    class UnquantizedFusedMoEMethod(torch.nn.Module):
        """Stands for SGLang's, which LoRA's runner never asks."""

    experts.base_layer = torch.nn.Module()
    experts.base_layer.quant_method = UnquantizedFusedMoEMethod()
    experts.base_layer.dispatcher = SimpleNamespace(
        dispatch=lambda **given: given, combine=lambda combine_input: combine_input
    )
    batches = SimpleNamespace(get_batch_info=lambda layout: object(), batch_info=object())
    runner = SimpleNamespace(run=lambda dispatched, quantised, lora_info: "LoRA's runner")
    no = dict.fromkeys(("is_lora", "is_experimental_sgl_trtllm", "is_experimental_sgl_marlin"), lambda: False)
    for name, value in {
        "lora_backend": batches,
        "_lora_runner": runner,
        "_lora_runner_backend": SimpleNamespace(**no),
        "_quant_info": None,
        "_get_lora_info": lambda: None,
    }.items():
        object.__setattr__(experts, name, value)
    settle(log, experts)
    assert experts(torch.randn(2, 8), None) == "LoRA's runner"
    assert told(log) == ["UnquantizedFusedMoEMethod → sglang(lora_experts)"]


def test_in_speculative_decoding_the_check_of_drafted_tokens_is_left_to_sglang(hook):
    triton = LinearAttnKernelBackend.TRITON
    dispatcher = GDNKernelDispatcher(triton, triton)
    kernel = dispatcher.decode_kernel
    hook.replace_methods(SimpleNamespace(linear_attn_backend=SimpleNamespace(kernel_dispatcher=dispatcher)))
    assert {"extend", "decode", "packed_decode"} <= vars(kernel).keys()
    assert "target_verify" not in vars(kernel)
    assert dispatcher.tree_verify_kernel.target_verify.__func__ is type(kernel).target_verify
    assert type(kernel).target_verify.__module__.startswith("sglang.")


def test_several_items_scored_at_once_are_left_to_sglang():
    from sglang_fl.sglang_adapter.layers.gated_delta_rule import bind_extend

    asked = []
    forward = bind_extend(None, None, lambda *args, **kwargs: asked.append(kwargs))
    states = dict.fromkeys(("ssm_states", "cache_indices", "query_start_loc"))
    forward(None, *(torch.zeros(1, 1, 1, 1),) * 5, **states, inplace_update=False)
    assert asked[0]["inplace_update"] is False

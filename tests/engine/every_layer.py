"""A layer of SGLang's for each adapter, with a call of it, and hooks to put it under."""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.moe import MoeRunnerConfig, topk
from sglang.srt.layers.moe.token_dispatcher import StandardDispatchOutput
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from torch import Tensor

from sglang_fl.dispatch.resolution import Resolution
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.ops import OPS
from sglang_fl.sglang_adapter.hook import LayerHook
from sglang_fl.vendor import BackendKind, OpImpl
from tests.engine.release import present
from tests.ops.subject import Layers, subject_of

REFUSING = "refusing_kernels"
#: Classes whose ``forward`` makes rows of its argument, which is all that their own path takes.
OF_ROWS = ("Gemma3nRMSNorm", "Glm4vRMSNorm")


def told(log: Path) -> list[str]:
    return [line.partition(" → ")[2] for line in log.read_text().splitlines()]


def hook_of(log: Path | None, target: str = f"{REFUSING}:{{op}}", **options: Any) -> LayerHook:
    """Make a hook whose only candidate for each op is this target."""
    resolutions = {
        name: Resolution(op, (OpImpl(name, BackendKind.FLAGOS, "flagos", target.format(op=name)),), **options)
        for name, op in OPS.items()
    }
    return LayerHook(resolutions, DispatchLog(log))


def references(log: Path | None = None, **options: Any) -> LayerHook:
    """Make a hook under which the references run all layers."""
    resolutions = {
        name: Resolution(op, (OpImpl(name, BackendKind.REFERENCE, "reference", op.target),), **options)
        for name, op in OPS.items()
    }
    return LayerHook(resolutions, DispatchLog(log))


def put(hook: LayerHook, layer: Any, own: Callable[[Any], Any] = lambda layer: layer.forward_native) -> Any:
    layer._forward_method = hook(own, layer)
    return layer


def router(scores: str, *, top_k: int = 2, bias: Tensor | None = None, **options: Any) -> Any:
    """Make a ``TopK`` without a server's configuration, which its constructor asks for."""
    layer = topk.TopK.__new__(topk.TopK)
    torch.nn.Module.__init__(layer)
    config = topk.TopKConfig(
        top_k=top_k,
        scoring_func=scores,
        correction_bias=bias,
        output_format=topk.TopKOutputFormat.STANDARD,
        **options,
    )
    layer.topk_config, layer.layer_id, layer.is_draft = config, 0, True
    layer.enable_waterfill, layer.waterfill_balancer, layer.is_fp4_experts = False, None, False
    return layer


def experts() -> tuple[Any, dict[str, Any]]:
    """Make SGLang's method for experts without quantisation, and a call of it."""
    method = UnquantizedFusedMoEMethod.__new__(UnquantizedFusedMoEMethod)
    torch.nn.Module.__init__(method)
    method.moe_runner_config, method.with_bias = MoeRunnerConfig(activation="silu"), False
    chosen = topk.StandardTopKOutput(
        torch.full((3, 2), 0.5), torch.tensor([[0, 1]] * 3, dtype=torch.int32), None
    )
    weights = SimpleNamespace(w13_weight=torch.randn(4, 16, 8), w2_weight=torch.randn(4, 8, 8), num_experts=4)
    given = StandardDispatchOutput(torch.randn(3, 8), None, chosen)
    return method, {"layer": weights, "dispatch_output": given}


has_router = present(hasattr(topk, "resolve_routing_inputs"), "TopK that can be made without a server")


def rope(head_size: int = 64, is_neox_style: bool = True) -> RotaryEmbedding:
    return RotaryEmbedding(head_size, head_size, 128, 10000, is_neox_style, torch.float32)


def rope_inputs() -> tuple[Tensor, Tensor, Tensor]:
    return torch.arange(3), torch.randn(3, 128), torch.randn(3, 64)


def layers_of_each_class() -> Layers:
    """Return one layer of each class that an adapter covers, and arguments for it."""
    found: Layers = {}
    for op in OPS:
        found |= subject_of(op).layers()
    return found


def every_layer() -> dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Return a layer for every adapter but those of kernels that are no layers, with a call of it."""
    made = {name: (layer, given, {}) for name, (layer, given) in layers_of_each_class().items()}
    method, call = experts()
    made["UnquantizedFusedMoEMethod"] = (method, (), call)
    if hasattr(topk, "resolve_routing_inputs"):
        logits = (torch.randn(3, 8), torch.randn(3, 6))
        made["TopK, softmax"] = (router("softmax"), logits, {})
        made["TopK, sigmoid"] = (router("sigmoid"), logits, {})
    return made


LAYERS = every_layer()
#: Those whose parameters are not just there.
WITH_WEIGHTS = [
    name for name, (layer, *_) in LAYERS.items() if list(layer.parameters()) and "bare" not in name
]


def new_layer(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return a layer that no other test has, with a call; to build all takes a quarter of a second."""
    return copy.deepcopy(LAYERS[name])


def clones(arguments: Iterable[Any], as_rows: bool = False) -> list[Any]:
    """Copy the tensors of a call; ``as_rows``: as (rows, width)."""
    copies = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    return [a.flatten(0, -2) for a in copies] if as_rows else copies

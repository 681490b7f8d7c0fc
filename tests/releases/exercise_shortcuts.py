"""Take SGLang's shortcuts on a CPU, watched and turned off, in the process of ``exercise_layers``.

Only what says that the hardware is there, and the kernel that it has, are ours; the code between is SGLang's.
"""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry

from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.sglang_adapter import seams
from sglang_fl.sglang_adapter.loaded_models import LoadedModels
from sglang_fl.sglang_adapter.shortcuts import SHORTCUTS

NAMED = dict.fromkeys(("rms_norm", "silu_and_mul"), "SGLANG_FL_PER_OP")


class Model(torch.nn.Module):
    """Two norms over heads, two layers that take shortcuts, and an activation pinned by its constructor."""

    def __init__(self) -> None:
        from sglang.srt.layers.activation import SiluAndMul
        from sglang.srt.layers.layernorm import RMSNorm
        from sglang.srt.models.qwen3_5 import Qwen3_5AttentionDecoderLayer
        from sglang.srt.models.qwen3_moe import Qwen3MoeAttention

        super().__init__()
        self.q_norm, self.k_norm = RMSNorm(64), RMSNorm(64)
        self.attention, self.gated = bare(Qwen3MoeAttention), bare(Qwen3_5AttentionDecoderLayer)
        self.pinned = SiluAndMul()
        self.pinned._forward_method = self.pinned.forward_native


def bare(cls: type[torch.nn.Module]) -> Any:
    """Return a layer of this class without anything in it."""
    layer = cls.__new__(cls)
    torch.nn.Module.__init__(layer)
    return layer


def exercise(folder: Path) -> dict[str, Any]:
    """Return what the dispatch log says of each shortcut, watched and turned off."""
    importlib.import_module("sglang.srt.models.qwen2")  # with it DualGemm, where a release has it
    importlib.import_module("sglang.srt.models.qwen3_moe")
    importlib.import_module("sglang.srt.models.qwen3_5")
    return {"watched": run(folder / "watched", {}), "off": run(folder / "off", NAMED)}


def run(path: Path, named: dict[str, str]) -> dict[str, list[str]]:
    HookRegistry.reset()  # what was hooked stays so, and is hooked once more
    model, log = Model(), DispatchLog(path)
    models = LoadedModels(named, log, seams.installed_version())
    models.settle(model)
    models.settle(model)
    return {
        "qk_norm": [take_qk_norm(model), *lines(path)],
        "qk_norm_rope": [take_qk_norm_rope(model), *lines(path)],
        "dual_gemm": [take_dual_gemm(), *lines(path)],
        "all_reduce": [take_all_reduce(), *lines(path)],
        "gated": [take_gated_prologue(model), *lines(path)],
        "pinned": [take_pinned(model), *lines(path)],
    }


def lines(path: Path) -> list[str]:
    found = sorted(line.removeprefix("[OOT-DISPATCH] ") for line in path.read_text().splitlines())
    path.write_text("")
    return found


def norm_in_place(q, k, q_weight, k_weight, head_dim=None, eps=None) -> None:
    """Stand for the chip's kernel, and leave a trace."""
    q.fill_(7.0)
    k.fill_(7.0)


def take_qk_norm(model: Model) -> str:
    from sglang.srt.models import utils

    q, k = torch.randn(3, 128), torch.randn(3, 64)
    was = {name: getattr(utils, name) for name in ("_is_cuda", *CONFIGURATION) if hasattr(utils, name)}
    if hasattr(utils, "can_use_fused_qk_norm_cpu"):  # from 0.5.20 on CPUs have a kernel
        utils.can_use_fused_qk_norm_cpu = lambda *facts: True
        library = torch.library.Library("sgl_kernel", "FRAGMENT")
        if not hasattr(torch.ops.sgl_kernel, "fused_qk_norm_cpu"):
            library.define("fused_qk_norm_cpu(Tensor q, Tensor k, Tensor qw, Tensor kw, float eps) -> ()")
            library.impl("fused_qk_norm_cpu", norm_in_place, "CPU")
        KEPT.append(library)
    else:
        graph = SimpleNamespace(cuda_graph_config=SimpleNamespace(prefill=SimpleNamespace(tc_compiler=None)))
        graph.graph = graph
        for name in CONFIGURATION & was.keys():
            setattr(utils, name, lambda: graph)
        utils._is_cuda = True
        utils.can_use_fused_inplace_qknorm = lambda *facts: True
        utils.fused_inplace_qknorm = norm_in_place
    normed, _ = utils.apply_qk_norm(q=q, k=k, q_norm=model.q_norm, k_norm=model.k_norm, head_dim=64)
    for name, value in was.items():
        setattr(utils, name, value)
    return "fused" if bool((normed == 7.0).all()) else "layers"


#: How the releases call what holds the configuration of a server.
CONFIGURATION = {"get_exec", "get_server_args", "get_global_server_args"}
KEPT: list[Any] = []


def take_qk_norm_rope(model: Model) -> str:
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
    from sglang.srt.models import qwen3_moe

    facts = {
        "q_norm": model.q_norm,
        "k_norm": model.k_norm,
        "rotary_emb": RotaryEmbedding(64, 64, 128, 10000, True, torch.bfloat16),
        "use_fused_qk_norm_rope": True,
        "use_fused_qk_norm_rope_cpu": True,
        **dict.fromkeys(("num_heads", "num_kv_heads"), 1),
        **dict.fromkeys(("head_dim", "q_size", "kv_size"), 64),
        "rope_theta": 10000,
        "config": SimpleNamespace(rope_scaling=None, rope_parameters={"rope_theta": 10000}),
        "alt_stream": None,
        "compatible_with_fused_kv_buffer": False,
    }
    for name, value in facts.items():
        setattr(model.attention, name, value)
    qwen3_moe._is_cuda = True
    qwen3_moe.fused_qk_norm_rope = lambda qkv, *facts: None
    qwen3_moe.enable_fused_set_kv_buffer = lambda forward_batch: False
    model.attention.apply_qk_norm_rope(torch.randn(3, 192, dtype=torch.bfloat16), torch.arange(3), None)
    qwen3_moe._is_cuda = False
    return "fused" if model.attention._used_fused_qk_norm_rope_last_call else "layers"


def take_dual_gemm() -> str | None:
    try:
        dual_gemm = importlib.import_module("sglang.srt.layers.dual_gemm")
    except ModuleNotFoundError:
        return None
    gemm = dual_gemm.DualGemm.__new__(dual_gemm.DualGemm)
    gemm.mode, gemm.max_tokens, gemm.tp_size = SimpleNamespace(is_quantized=False), 16, 1
    kernels = importlib.import_module("sglang.kernels.ops.gemm")
    kernels.dual_gemm_swiglu = lambda x, weight: x
    projection = SimpleNamespace(weight=None)
    x = torch.randn(3, 8)
    if not gemm.can_run(x, projection):  # as LlamaMLP asks
        return "layers"
    gemm(x, projection)
    return "fused"


def take_all_reduce() -> str:
    """Ask whether the fusion applies, as SGLang's layers do, and take it."""
    from sglang.srt.layers import flashinfer_comm_fusion, layernorm

    owner, name = fusion_predicate()
    applies = getattr(owner, name)
    if applies is not UNHOOKED.setdefault(name, applies) and not applies(8):
        return "layers"
    norm, x, residual = layernorm.RMSNorm(64), torch.randn(3, 64), torch.randn(3, 64)
    was = layernorm.get_parallel, flashinfer_comm_fusion.flashinfer_allreduce_residual_rmsnorm
    layernorm.get_parallel = lambda: SimpleNamespace(attn_tp_size=2)
    flashinfer_comm_fusion.flashinfer_allreduce_residual_rmsnorm = lambda **given: (x, residual)
    norm.forward_with_allreduce_fusion(x, residual)
    layernorm.get_parallel, flashinfer_comm_fusion.flashinfer_allreduce_residual_rmsnorm = was
    return "fused"


def take_gated_prologue(model: Model) -> str:
    """Prepare query, key and gate of a Qwen3.5 layer as on CUDA, with a picture's three rows of positions."""
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

    qwen3_5 = importlib.import_module("sglang.srt.models.qwen3_5")
    layer = model.gated
    rotary = RotaryEmbedding(64, 64, 128, 10000, True, torch.float32)
    rotary.axis_map = torch.zeros(32, dtype=torch.int64)
    facts = {
        "q_norm": model.q_norm,
        "k_norm": model.k_norm,
        "rotary_emb": rotary,
        "attn_output_gate": True,
        **dict.fromkeys(("num_heads", "num_kv_heads"), 1),
        **dict.fromkeys(("head_dim", "q_size", "kv_size"), 64),
    }
    for name, value in facts.items():
        setattr(layer, name, value)
    layer.qkv_proj = lambda x: (torch.randn(3, 4 * 64), None)
    layer.forward_prepare_native = lambda *given: ("layers",)
    kernel = lambda q_gate, k, *facts, **more: (q_gate[:, :64], k, q_gate[:, 64:])  # noqa: E731 - stands for one
    qwen3_5.fused_qk_gemma_rmsnorm_rope_gate = kernel
    positions = torch.arange(3).expand(3, 3)
    prepared = layer.forward_prepare_cuda_fused(positions, torch.randn(3, 64))
    return "layers" if prepared == ("layers",) else "fused"


UNHOOKED: dict[str, Any] = {}


def fusion_predicate() -> tuple[Any, str]:
    (shortcut,) = (known for known in SHORTCUTS if known.name == "fused_allreduce_norm")
    version = seams.installed_version()
    (switch,) = (switch for switch in shortcut.switches if version in switch.releases)
    module, _, name = switch.target.rpartition(".")
    return importlib.import_module(module), name


def take_pinned(model: Model) -> str:
    x = torch.randn(3, 8)
    model.pinned(x)
    model.pinned(x)
    method = model.pinned._forward_method
    return "pinned" if method == model.pinned.forward_native else repr(method)

"""Where SGLang computes an op without asking for the layer's forward, and how to stop it.

A written catalogue, which imports nothing of SGLang. ``loaded_models`` puts it into force once a model is
there: a shortcut past an op whose backend the user named is turned off, the others are watched, and the
dispatch log names those that ran.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from sglang_fl.sglang_adapter.releases import EVERY_RELEASE, Range

__all__ = ["DIRECT_CALLS", "SHORTCUTS", "DirectCall", "Shortcut", "Switch"]

#: ``watch(original, *args, **kwargs)`` calls the function and returns its result, and the layers (or the
#: names of their classes) that it passed over in this call.
Watch = Callable[..., tuple[Any, tuple[Any, ...]]]


@dataclass(frozen=True)
class Switch:
    """A function of SGLang that, when replaced, keeps SGLang from a shortcut.

    Parameters
    ----------
    target : the function, as SGLang's ``HookRegistry`` spells it
    replacement : called as ``replacement(original, *args, **kwargs)``
    releases : those that have it
    """

    target: str
    replacement: Callable[..., Any]
    releases: Range = EVERY_RELEASE


@dataclass(frozen=True)
class Shortcut:
    """One path of SGLang past a layer.

    Parameters
    ----------
    name : as the dispatch log writes it: ``sglang(fused_qk_norm)``
    ops : the ops that are passed over
    target : the function that takes the path, as SGLang's ``HookRegistry`` spells it
    condition : when SGLang takes it
    watch : see ``Watch``; None where the kernel does not know for which norm it runs
    switches : what turns it off, in one release or another; empty where nothing has to
    off : how it is turned off, in words
    releases : those that have it
    """

    name: str
    ops: tuple[str, ...]
    target: str
    condition: str
    watch: Watch | None
    switches: tuple[Switch, ...]
    off: str
    releases: Range = EVERY_RELEASE

    def passes(self, ops: Collection[str]) -> list[str]:
        """Return which of these ops it passes over."""
        return [op for op in self.ops if op in ops]


@dataclass(frozen=True)
class DirectCall:
    """A model that calls one method of a layer by name, so that nobody can stand in for it.

    Parameters
    ----------
    op : the op that is passed over
    owner : the class whose code does it, ``module:Class``
    condition : what it calls, and when
    releases : those that have it
    """

    op: str
    owner: str
    condition: str
    releases: Range = EVERY_RELEASE


class _Witness:
    """Stands for a norm, and knows whether it was called."""

    def __init__(self, norm: Any) -> None:
        self._norm = norm
        self.was_called = False

    def forward(self, *args: Any) -> Any:
        self.was_called = True
        return self._norm.forward(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._norm, name)


def _watch_qk_norm(
    original: Callable[..., Any], q: Any, k: Any, q_norm: Any, *args: Any, **kwargs: Any
) -> tuple[Any, tuple[Any, ...]]:
    # The norms' own results come back as new views, the fused kernel's in the very tensors given.
    result = original(q, k, q_norm, *args, **kwargs)
    return result, (q_norm,) if result[0] is q else ()


def _watch_qk_norm_rope(
    original: Callable[..., Any], layer: Any, *args: Any, **kwargs: Any
) -> tuple[Any, tuple[Any, ...]]:
    result = original(layer, *args, **kwargs)
    return result, _norm_and_rope(layer) if layer._used_fused_qk_norm_rope_last_call else ()


def _watch_prologue(
    original: Callable[..., Any], layer: Any, *args: Any, **kwargs: Any
) -> tuple[Any, tuple[Any, ...]]:
    return original(layer, *args, **kwargs), _norm_and_rope(layer)


def _watch_mrope_prologue(
    original: Callable[..., Any], layer: Any, *args: Any, **kwargs: Any
) -> tuple[Any, tuple[Any, ...]]:
    has_sections = bool(getattr(layer.rotary_emb, "mrope_section", None))
    return original(layer, *args, **kwargs), _norm_and_rope(layer) if has_sections else ()


def _watch_gated_qk_norm(
    original: Callable[..., Any], layer: Any, *args: Any, **kwargs: Any
) -> tuple[Any, tuple[Any, ...]]:
    return original(layer, *args, **kwargs), (layer.q_norm,) if layer.attn_output_gate else ()


def _norm_and_rope(layer: Any) -> tuple[Any, ...]:
    # LlamaAttention has no norm, and its NPU path rotates alone.
    return tuple(getattr(layer, name) for name in ("q_norm", "rotary_emb") if hasattr(layer, name))


def _watch_all_reduce(
    original: Callable[..., Any], norm: Any, *args: Any, **kwargs: Any
) -> tuple[Any, tuple[Any, ...]]:
    # Where the fused kernel declines, SGLang calls the norm itself, from within.
    witness = _Witness(norm)
    result = original(witness, *args, **kwargs)
    return result, () if witness.was_called else (norm,)


def _watch_silu_quant(original: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, tuple[Any, ...]]:
    # The quantised product and its scales; the activation alone returns one tensor.
    result = original(*args, **kwargs)
    return result, ("SiluAndMul",) if isinstance(result, tuple) else ()


def _watch_lora_experts(
    original: Callable[..., Any], layer: Any, *args: Any, **kwargs: Any
) -> tuple[Any, tuple[Any, ...]]:
    return original(layer, *args, **kwargs), (layer.base_layer.quant_method,)


def _watch_calls(name: str) -> Watch:
    """Return a watch for a function that always computes the op of this layer class."""

    def watch(original: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, tuple[Any, ...]]:
        return original(*args, **kwargs), (name,)

    return watch


def _never(original: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    return False


def _ineligible(original: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[bool, str]:
    return False, "sglang-fl keeps the convolution apart"


def _out_of_place(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # All fused kernels of apply_qk_norm write in place; what allows that is its seventh argument.
    return original(*args[:6], **{**kwargs, "allow_inplace": False})


def _unfused(original: Callable[..., Any], layer: Any, *args: Any, **kwargs: Any) -> Any:
    layer.use_fused_qk_norm_rope = layer.use_fused_qk_norm_rope_cpu = False
    return original(layer, *args, **kwargs)


def _natively(
    original: Callable[..., Any], layer: Any, positions: Any, hidden_states: Any, *rest: Any, **more: Any
) -> Any:
    return layer.forward_prepare_native(positions, hidden_states)


def _natively_in_batch(
    original: Callable[..., Any], layer: Any, positions: Any, hidden_states: Any, forward_batch: Any
) -> Any:
    return layer.forward_prepare_native(positions, hidden_states, forward_batch)


def _by_the_norms(original: Callable[..., Any], layer: Any, q: Any, k: Any) -> Any:
    q_normed = layer.q_norm(q.reshape(-1, layer.head_dim))
    k_normed = layer.k_norm(k.reshape(-1, layer.head_dim))
    return q_normed.view(q.shape), k_normed.view(k.shape)


_SRT = "sglang.srt"
_QWEN3_5 = f"{_SRT}.models.qwen3_5.Qwen3_5AttentionDecoderLayer"
_FUSIONS = f"{_SRT}.layers.layer_boundary.fusions"
_ADD_NORM = f"{_SRT}.layers.layer_boundary.residual.add_norm"
_QWEN3_5_FUSION = f"{_SRT}.layers.moe.qwen35_flashinfer_fusion"
_KERNELS = "sglang.kernels.ops.attention"
_PROJ_CONV = f"{_KERNELS}.triton_gdn_fused_proj"
_KDA_DECODE = f"{_KERNELS}.kda_fused_decode"
_CUTEDSL = "CUDA, SM100, tensor parallel, --flashinfer-allreduce-fusion-backend cutedsl"
_NPU_NORM_ROPE = "NPU: sgl_kernel_npu splits, norms and rotates in one kernel"
_NATIVE = "forward_prepare_native runs instead"
_GEMMA_ROPE = ("gemma_rms_norm", "rotary_embedding", "mrope")


def _npu(owner: str, ops: tuple[str, ...], replacement: Callable[..., Any] = _natively) -> Shortcut:
    target = f"{_SRT}.models.{owner}.forward_prepare_npu"
    switches = (Switch(target, replacement),)
    return Shortcut("npu_norm_rope", ops, target, _NPU_NORM_ROPE, _watch_prologue, switches, _NATIVE)


SHORTCUTS: tuple[Shortcut, ...] = (
    Shortcut(
        "fused_qk_norm",
        ("rms_norm",),
        f"{_SRT}.models.utils.apply_qk_norm",
        "CUDA: heads of 64 to 1024, same eps, not deterministic; from 0.5.20 on also CPUs with AMX",
        _watch_qk_norm,
        (Switch(f"{_SRT}.models.utils.apply_qk_norm", _out_of_place),),
        "apply_qk_norm is called with allow_inplace=False",
    ),
    Shortcut(
        "fused_qk_norm_rope",
        ("rms_norm", "rotary_embedding"),
        f"{_SRT}.models.qwen3_moe.Qwen3MoeAttention.apply_qk_norm_rope",
        "--enable-fused-qk-norm-rope, bfloat16; from 0.5.20 on also CPUs with AMX",
        _watch_qk_norm_rope,
        (Switch(f"{_SRT}.models.qwen3_moe.Qwen3MoeAttention.apply_qk_norm_rope", _unfused),),
        "use_fused_qk_norm_rope of the attention layer is False",
    ),
    Shortcut(
        "fused_qk_norm_rope",
        ("rms_norm", "rotary_embedding"),
        f"{_SRT}.models.mellum.MellumAttention.apply_qk_norm_rope",
        "--enable-fused-qk-norm-rope, bfloat16",
        _watch_qk_norm_rope,
        (
            Switch(
                f"{_SRT}.models.mellum.MellumAttention.apply_qk_norm_rope", _unfused, releases=Range("0.5.16")
            ),
        ),
        "use_fused_qk_norm_rope of the attention layer is False",
        releases=Range("0.5.16"),
    ),
    Shortcut(
        "fused_qk_norm_rope_gate",
        _GEMMA_ROPE,
        f"{_QWEN3_5}.forward_prepare_cuda_fused",
        "CUDA: attention with an output gate",
        _watch_prologue,
        (Switch(f"{_QWEN3_5}.forward_prepare_cuda_fused", _natively),),
        _NATIVE,
    ),
    Shortcut(
        "fused_qk_norm_gate",
        ("gemma_rms_norm",),
        f"{_QWEN3_5}.forward_prepare_fused_gate",
        "ROCm, XPU, CPUs with AMX: attention with an output gate",
        _watch_gated_qk_norm,
        (Switch(f"{_QWEN3_5}.forward_prepare_fused_gate", _natively),),
        _NATIVE,
    ),
    Shortcut(
        "fused_qk_norm",
        ("gemma_rms_norm",),
        f"{_SRT}.models.qwen3_5.fused_qk_gemma_rmsnorm",
        "ROCm, XPU, CPUs with AMX: Qwen3.5",
        _watch_calls("GemmaRMSNorm"),
        (Switch(f"{_QWEN3_5}._apply_qk_norm", _by_the_norms),),
        "both norms are called",
    ),
    _npu("llama.LlamaAttention", ("rotary_embedding",)),
    _npu("qwen3.Qwen3Attention", ("rms_norm", "rotary_embedding")),
    _npu("qwen3_moe.Qwen3MoeAttention", ("rms_norm", "rotary_embedding"), _natively_in_batch),
    _npu("qwen3_next.Qwen3HybridAttentionDecoderLayer", _GEMMA_ROPE),
    _npu("qwen3_5.Qwen3_5AttentionDecoderLayer", _GEMMA_ROPE),
    Shortcut(
        "npu_norm_rope",
        _GEMMA_ROPE,
        f"{_QWEN3_5}.forward_prepare_npu_prefill",
        _NPU_NORM_ROPE,
        _watch_mrope_prologue,
        (Switch(f"{_QWEN3_5}.forward_prepare_npu_prefill", _natively, releases=Range("0.5.23")),),
        _NATIVE,
        releases=Range("0.5.23"),
    ),
    Shortcut(
        "dual_gemm",
        ("silu_and_mul",),
        f"{_SRT}.layers.dual_gemm.DualGemm.__call__",
        "CUDA, SM100 (Blackwell): dense gated MLPs of certain shapes, at most 16 tokens",
        _watch_calls("SiluAndMul"),
        (Switch(f"{_SRT}.layers.dual_gemm.DualGemm.can_run", _never, releases=Range("0.5.22")),),
        "DualGemm.can_run says no",
        releases=Range("0.5.22"),
    ),
    Shortcut(
        "fused_silu_quant",
        ("silu_and_mul",),
        f"{_SRT}.layers.quantization.fp8_activation.DenseSiluAndMulQuant.forward_decode",
        "CUDA, SM100: block FP8, decode, and SiluAndMul left to SGLang",
        _watch_silu_quant,
        (),
        "off by itself: SGLang looks whose forward SiluAndMul has",
        releases=Range("0.5.23"),
    ),
    Shortcut(
        "lora_experts",
        ("fused_moe",),
        f"{_SRT}.lora.layers.FusedMoEWithLoRA._forward_with_lora",
        "LoRA on experts: what it adds stands between their two layers",
        _watch_lora_experts,
        (),
        "never: the contract has no LoRA, such calls stay SGLang's",
    ),
    Shortcut(
        "fused_proj_conv",
        ("causal_conv1d_update",),
        f"{_PROJ_CONV}.fused_qkvzba_causal_conv1d_update_contiguous",
        "CUDA: decode steps of Qwen3.5; SGLANG_ENABLE_GDN_DECODE_FUSED_PROJ_CONV=0 is SGLang's own switch",
        _watch_calls("GDNAttnBackend.causal_conv1d_update"),
        (
            Switch(
                f"{_PROJ_CONV}.can_use_fused_qkvzba_causal_conv1d_update_contiguous",
                _ineligible,
                releases=Range("0.5.19"),
            ),
        ),
        "no projection is eligible",
        releases=Range("0.5.19"),
    ),
    Shortcut(
        "kda_fused_decode",
        ("causal_conv1d_update",),
        f"{_KDA_DECODE}.kda_fused_decode",
        "CUDA: decode steps of Kimi K3",
        _watch_calls("KDAAttnBackend.causal_conv1d_update"),
        (Switch(f"{_KDA_DECODE}.covered", _never, releases=Range("0.5.17")),),
        "no shapes are covered",
        releases=Range("0.5.17"),
    ),
    Shortcut(
        "kda_prefill_graph",
        ("causal_conv1d_fn",),
        f"{_SRT}.layers.attention.linear.kda_backend.kda_extend_in_graph",
        "CUDA: prefills of Kimi's delta attention in a breakable CUDA graph",
        _watch_calls("KDAAttnBackend.causal_conv1d_fn"),
        (),
        "never by us: SGLANG_DISABLE_KDA_PREFILL_GRAPH_EXTEND=1 is SGLang's own switch",
        releases=Range("0.5.22"),
    ),
    Shortcut(
        "fused_allreduce_norm",
        ("rms_norm", "gemma_rms_norm"),
        f"{_SRT}.layers.layernorm._forward_with_allreduce_fusion",
        "CUDA, SM90 or SM100, tensor parallel, at most 2048 tokens, certain architectures",
        _watch_all_reduce,
        (
            Switch(
                f"{_SRT}.layers.communicator.apply_flashinfer_allreduce_fusion",
                _never,
                releases=Range(last="0.5.20"),
            ),
            Switch(
                f"{_ADD_NORM}.apply_flashinfer_allreduce_fusion", _never, releases=Range("0.5.21", "0.5.21")
            ),
            Switch(f"{_ADD_NORM}.flashinfer_ar_fusion_applies", _never, releases=Range("0.5.22")),
        ),
        "the question whether the fusion applies is answered with no",
    ),
    Shortcut(
        "cutedsl_allreduce_norm",
        ("gemma_rms_norm",),
        f"{_QWEN3_5_FUSION}.Qwen35FlashInferFusionService.all_reduce_residual_rms_norm",
        "CUDA, SM100, tensor parallel, Qwen3.5 with experts",
        _watch_calls("GemmaRMSNorm"),
        (
            Switch(
                f"{_QWEN3_5_FUSION}.Qwen35FlashInferLayerCommunicator._common_eligible",
                _never,
                releases=Range("0.5.19", "0.5.20"),
            ),
        ),
        "no batch is eligible",
        releases=Range("0.5.19", "0.5.20"),
    ),
    Shortcut(
        "cutedsl_allreduce_norm",
        ("rms_norm", "gemma_rms_norm"),
        f"{_FUSIONS}.cutedsl.CuteDSLFusionService.all_reduce_residual_rms_norm",
        _CUTEDSL,
        None,
        (
            Switch(
                f"{_FUSIONS}.cutedsl.CuteDSLFusion._common_eligible",
                _never,
                releases=Range("0.5.21", "0.5.21"),
            ),
        ),
        "no batch is eligible",
        releases=Range("0.5.21", "0.5.21"),
    ),
    Shortcut(
        "cutedsl_allreduce_norm",
        ("rms_norm", "gemma_rms_norm"),
        f"{_FUSIONS}.cutedsl.CuteDSLWorkspace.all_reduce_residual_rms_norm",
        _CUTEDSL,
        None,
        (Switch(f"{_FUSIONS}.cutedsl.CuteDSLFusion._eligible", _never, releases=Range("0.5.22")),),
        "no batch is eligible",
        releases=Range("0.5.22"),
    ),
    Shortcut(
        "custom_allreduce_norm",
        ("gemma_rms_norm", "rms_norm"),
        f"{_FUSIONS}.custom_all_reduce_fusion.CustomAllReduceFusion._run_finalize",
        "CUDA, tensor parallel, MiniMax-M3",
        None,
        (
            Switch(
                f"{_FUSIONS}.custom_all_reduce_fusion.CustomAllReduceFusion._eligible",
                _never,
                releases=Range("0.5.23"),
            ),
        ),
        "no batch is eligible",
        releases=Range("0.5.23"),
    ),
)

DIRECT_CALLS: tuple[DirectCall, ...] = (
    DirectCall("rms_norm", "sglang.srt.models.olmo2:Olmo2Attention", "q_norm and k_norm by forward_native"),
    DirectCall(
        "topk_softmax",
        "sglang.srt.models.xllm:XllmSparseMoeBlock",
        "topk by forward_native",
        releases=Range("0.5.20"),
    ),
    DirectCall(
        "topk_sigmoid",
        "sglang.srt.models.xllm:XllmSparseMoeBlock",
        "topk by forward_native",
        releases=Range("0.5.20"),
    ),
)

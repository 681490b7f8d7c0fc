"""Which of SGLang's fused layer classes layer 2 dispatches, and why not the rest.

``NOT_DISPATCHED`` has a line for each class without an adapter in a supported SGLang. A release
that brings another one fails the test that holds both catalogues against its source.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_fl.sglang_adapter.layers import ADAPTERS
from sglang_fl.sglang_adapter.source import PLUGIN_METHOD, ROOTS, FusedClass, fused_classes

__all__ = ["NOT_DISPATCHED", "Coverage", "adapter_of", "coverage"]

_FUNCTIONAL = (
    "behind a function of SGLang's, not a layer: out= and the weight are arguments, and LoRA on Marlin "
    "experts is its one user in a server"
)
_UNUSED = "behind a function of SGLang's, not a layer, and nothing in a server calls it"
_MUSE_SPARK = "of the Muse Spark models alone: "
_BEAM = "of the Beam models alone: "
_INDEXER = "the whole indexer of a sparse attention: projections, KV cache and token choice in one"

#: ``module:Class`` -> why it has no adapter, and what runs instead where that is not SGLang's own kernel.
NOT_DISPATCHED: dict[str, str] = {
    "sglang.kernels.ops.activation:GeluAndMulOp": _UNUSED,
    "sglang.kernels.ops.activation:GeluTanhAndMulOp": _UNUSED,
    "sglang.kernels.ops.activation:QuickGELUOp": _UNUSED,
    "sglang.kernels.ops.activation:ReLU2Op": _UNUSED,
    "sglang.kernels.ops.activation:SiluAndMulOp": _FUNCTIONAL,
    "sglang.kernels.ops.activation:_GatedActivationOp": "the base of the gated activations behind functions",
    "sglang.kernels.ops.attention.clamp_position:ClampPositionOp": (
        "one integer subtraction for each batch, by the scheduler: nothing to win, and no layer of a model"
    ),
    "sglang.kernels.ops.attention.muse_spark_qk_norm_rope_store:FusedQKNorm": (
        _MUSE_SPARK + "norm, rotation and KV cache store in one"
    ),
    "sglang.kernels.ops.communication.muse_spark_moe_finalize_all_reduce:"
    "FusedPostExpertNormWeightedSumTRTLLM": _MUSE_SPARK + "the end of TensorRT-LLM's expert layout",
    "sglang.kernels.ops.elementwise.beam_fused:BeamAttentionGateOp": _BEAM
    + "sigmoid gate with a bias per head",
    "sglang.kernels.ops.gemm:Fp8ScaledMMOp": (
        "an FP8 matrix product: SGLang picks a kernel for each shape; quantisation is not layer 2's"
    ),
    "sglang.kernels.ops.layernorm.beam_fused:BeamSandwichResidualRMSNormOp": (
        _BEAM + "two norms and a scaled sum, whose roundings in between must stay"
    ),
    "sglang.kernels.ops.layernorm.muse_spark_norm_gate:FusedRMSNormGate": _MUSE_SPARK
    + "norm and gate per head",
    "sglang.kernels.ops.layernorm.muse_spark_norm_residual:FusedPostNormResidualPreNorm": (
        _MUSE_SPARK + "norm, residual and norm in one"
    ),
    "sglang.kernels.ops.layernorm.muse_spark_rmsnorm_nvfp4_quant:_FusedNormFP4Quant": (
        _MUSE_SPARK + "norm and FP4 quantisation in one"
    ),
    "sglang.kernels.ops.layernorm:FusedAddRMSNormOp": _UNUSED,
    "sglang.kernels.ops.layernorm:GemmaFusedAddRMSNormOp": _UNUSED,
    "sglang.kernels.ops.layernorm:GemmaRMSNormOp": _UNUSED,
    "sglang.kernels.ops.layernorm:RMSNormOp": _UNUSED,
    "sglang.kernels.ops.moe.muse_spark_routing:FusedMuseSparkRouting": (
        _MUSE_SPARK + "its routing scales the logits and writes buffers that the model keeps"
    ),
    "sglang.srt.layers.activation:XIELU": (
        "overrides forward, so dispatch is never reached; it calls the xielu library, or PyTorch"
    ),
    "sglang.srt.layers.attention.dsa.dsa_indexer:Indexer": _INDEXER,
    "sglang.srt.layers.attention.dsa.dsa_indexer_kpool:IndexerKPool": _INDEXER,
    "sglang.srt.layers.attention.dsv4.compress_hip:CompressorHip": (
        "overrides forward, so dispatch is never reached; DeepSeek-V4 on ROCm only"
    ),
    "sglang.srt.layers.attention.dsv4.compressor:Compressor": (
        "compresses the KV cache of DeepSeek-V4: it reads and writes the attention backend's state"
    ),
    "sglang.srt.layers.attention.mamba.mixer2_rms_norm_gated:Mixer2RMSNormGated": (
        "a gated norm with tensor-parallel collectives inside, for hybrid Mamba models"
    ),
    "sglang.srt.layers.attention.qsa.qsa_indexer:QSAIndexer": _INDEXER,
    "sglang.srt.layers.conv:Conv2dLayer": "a convolution: PyTorch computes it, so it is layer 1's",
    "sglang.srt.layers.conv:Conv3dLayer": "a convolution: PyTorch computes it, so it is layer 1's",
    "sglang.srt.layers.rotary_embedding.bailing_mrope:BailingMRotaryEmbedding": (
        "overrides forward, so dispatch is never reached; its positions may be negative"
    ),
    "sglang.srt.layers.rotary_embedding.mrope:Ernie4_5_VLRotaryEmbedding": (
        "overrides forward, so dispatch is never reached; it reads mrope_section as h, w, t"
    ),
    "sglang.srt.layers.rotary_embedding.rope_variant:DualChunkRotaryEmbedding": (
        "overrides forward, so dispatch is never reached; it returns five queries in one"
    ),
    "sglang.srt.layers.rotary_embedding.rope_variant:Llama4VisionRotaryEmbedding": (
        "overrides forward, so dispatch is never reached; its cache is complex and it takes no positions"
    ),
}


@dataclass(frozen=True)
class Coverage:
    """What becomes of one layer class.

    Parameters
    ----------
    layer_class : ``module:Class``
    ops : the ops that run it, by name; empty where it has no adapter
    reason : why it has none; empty for a class that is in no catalogue yet
    has_plugin_backend : whether SGLang's source lets a kernel plugin run it
    """

    layer_class: str
    ops: tuple[str, ...]
    reason: str
    has_plugin_backend: bool = False


def coverage(package: Path) -> list[Coverage]:
    """Return what becomes of each fused layer class of an SGLang, without importing it.

    Parameters
    ----------
    package : the folder ``sglang``
    """
    return [
        Coverage(
            cls.path,
            _ops(adapter_of(cls, ADAPTERS)),
            NOT_DISPATCHED.get(cls.path, ""),
            any(PLUGIN_METHOD in cls.forwards[a] for a in cls.ancestors if a not in ROOTS),
        )
        for cls in fused_classes(package)
    ]


def adapter_of(cls: FusedClass, adapters: Collection[str]) -> str | None:
    """Return the class whose adapter covers this one: ``adapter.covering``, for a class in its source."""
    for ancestor in cls.ancestors:
        if ancestor in adapters:
            return ancestor
        if cls.forwards[ancestor]:
            return None
    return None


def _ops(adapted: str | None) -> tuple[str, ...]:
    if adapted is None:
        return ()
    found: Any = ADAPTERS[adapted]
    return tuple(adapter.op.name for adapter in (found if isinstance(found, tuple) else (found,)))

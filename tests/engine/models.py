"""Model families: what SGLang runs each with, and its random weights."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from sglang_fl.sglang_adapter.releases import CHUNKS, EVERY_RELEASE, PLAIN_PREFILL, WITHOUT_TRITON, Range
from tests.engine import configurations
from tests.engine.words import SPECIAL, make_tokenizer

__all__ = ["ATTENTION", "BY_NAME", "FAMILIES", "IMAGE", "OURS", "Family", "make_model"]

#: A picture's file in the folder of a model that sees.
IMAGE = "image.png"


@dataclass(frozen=True)
class Family:
    """A model family as the engine must run it.

    Parameters
    ----------
    name : for test ids and the report
    covers : what the others do not have
    config : makes the tiny configuration
    runs : SGLang's layer classes that must run on an implementation of ours, with their ops
    model : the class in transformers that is made of the configuration
    processor : for families that see: makes the processor of pictures, given a tokenizer
    engine : arguments of ``sgl.Engine`` that only this family needs
    left : layer classes that are SGLang's, because the contract of their op does not have what they need
    once : ops of the part that sees; SGLang keeps what that made of a picture, so that a mistake planted
        later has no effect
    shown_by : mistakes are planted for so many of the shortest prompts, where references go token by token
        and take long for the others; None: for all
    no_mistakes : mistakes that are none in this family, such as ``topk_sigmoid.ungrouped`` with one group
    releases : of SGLang, those that can run it
    fused : the method that runs by ``qk_norm_rope`` where there is an implementation; then no rotation runs
    writes_cache : whether a rotation writes the KV cache, which SGLang lets it on GPUs alone
    is_cached : whether the middle of a prompt is found in the cache: not where all but a window is dropped
    """

    name: str
    covers: str
    config: Callable[[], transformers.PreTrainedConfig]
    runs: dict[str, str]
    model: Any = transformers.AutoModelForCausalLM
    processor: Callable[[Any], transformers.ProcessorMixin] | None = None
    engine: dict[str, Any] = field(default_factory=dict)
    left: frozenset[str] = frozenset()
    once: frozenset[str] = frozenset()
    shown_by: int | None = None
    no_mistakes: frozenset[str] = frozenset()
    releases: Range = EVERY_RELEASE
    fused: str | None = None
    writes_cache: bool = False
    is_cached: bool = True

    def __str__(self) -> str:
        return self.name


def make_model(family: Family, folder: Path, *, seed: int = 0) -> torch.nn.Module:
    """Write a random-weight checkpoint in float32; return the model as transformers runs it."""
    torch.manual_seed(seed)
    config = family.config()
    model = family.model.from_config(config, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _draw(name, parameter)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.2)
        for name, module in model.named_modules():
            # For latents transformers takes 1e-6 whatever the configuration says, as all checkpoints do.
            if name.endswith("_a_layernorm"):
                module.variance_epsilon = config.rms_norm_eps
        # Never an answer: transformers looks for a picture behind each token of one.
        model.get_output_embeddings().weight[: len(SPECIAL)] = 0
    model.save_pretrained(folder)
    if family.processor is not None:
        processor = family.processor(make_tokenizer())
        processor.save_pretrained(folder)
        pixels = torch.randint(0, 256, (6, 4, 3), dtype=torch.uint8).numpy()
        token = processor.image_processor.patch_size * processor.image_processor.merge_size
        Image.fromarray(pixels).resize((4 * token, 6 * token)).save(folder / IMAGE)
    return model.eval()


def _draw(name: str, parameter: torch.Tensor) -> None:
    """Give a parameter random numbers with which each part of the model matters."""
    if _is_router(name):
        parameter.normal_(std=0.3)  # experts well apart, so that rounding chooses no other one
    elif name.endswith(".conv1d.weight"):
        parameter.normal_(std=0.5)  # four taps, whose sum is to be as wide as what they meet
    elif parameter.dim() > 1:
        parameter.normal_(std=0.1)  # wide enough that every layer matters, and not chaotic
    elif name.endswith(".sinks"):
        parameter.copy_(torch.randn_like(parameter).bfloat16())  # SGLang keeps them so
    else:
        parameter.add_(0.2 * torch.randn_like(parameter))  # norms around 1 or 0, biases around 0


def _is_router(name: str) -> bool:
    return name.endswith((".gate.weight", ".router.weight"))


SWIGLU = {"RMSNorm": "rms_norm", "SiluAndMul": "silu_and_mul"}
ROPE = {"RotaryEmbedding": "rotary_embedding"}
EXPERTS = {"TopK": "topk_softmax", "UnquantizedFusedMoEMethod": "fused_moe"}
#: With ``OURS``: the attention backend's kernels; what writes latents is SGLang's.
LATENT_ATTENTION = {
    "AttentionKernels.decode": "decode_attention",
    "AttentionKernels.extend": "extend_attention",
}
ATTENTION = {**LATENT_ATTENTION, "AttentionKernels.write": "kv_cache_write"}
OURS = {"attention_backend": "sglang_fl"}
CONVOLUTION = {
    "CausalConvolution.prefill": "causal_conv1d_fn",
    "CausalConvolution.update": "causal_conv1d_update",
}
DELTA_RULE = {
    "TritonGDNKernel.extend": "chunk_gated_delta_rule",
    "TritonGDNKernel.packed_decode": "fused_recurrent_gated_delta_rule_packed_decode",
}
MAMBA_2 = {
    **CONVOLUTION,
    "StateSpace.scan": "mamba_chunk_scan_combined",
    "StateSpace.update": "selective_state_update",
}
#: A state is kept where a chunk of a prompt ends, so that followers find one in the middle.
#: Few states, too: SGLang would fill half of the memory with them, and a mistake copies them all.
IN_CHUNKS = {"chunked_prefill_size": 64, "max_mamba_cache_size": 64}
LLAMA_4 = {**SWIGLU, **ROPE, "UnquantizedFusedMoEMethod": "fused_moe", **ATTENTION}
BIASED_EXPERTS = {"TopK": "topk_sigmoid", "UnquantizedFusedMoEMethod": "fused_moe"}


def pictures(
    processor: str, video_processor: str, patch_size: int
) -> Callable[[Any], transformers.ProcessorMixin]:
    def make(tokenizer: Any) -> transformers.ProcessorMixin:
        size = {"shortest_edge": 32 * 32, "longest_edge": 256 * 256}
        sizes = {"patch_size": patch_size, "merge_size": 2, "size": size}
        return getattr(transformers, processor)(
            image_processor=transformers.Qwen2VLImageProcessor(**sizes),
            tokenizer=tokenizer,
            video_processor=getattr(transformers, video_processor)(**sizes),
            chat_template=tokenizer.chat_template,
        )

    return make


#: Families by SGLang's own attention, and after them those by ours.
FAMILIES = (
    Family("Qwen2", "biases of q, k and v", configurations.qwen2, {**SWIGLU, **ROPE}),
    Family(
        "Qwen3",
        "norms of q and k, in one with the rotation",
        configurations.qwen3,
        {**SWIGLU, **ROPE},
        fused="Qwen3Attention.forward",
    ),
    Family(
        "Llama-llama3",
        "rope scaled by wavelength",
        configurations.llama3,
        {**SWIGLU, "Llama3RotaryEmbedding": "rotary_embedding"},
    ),
    Family(
        "Llama-linear",
        "rope with positions scaled",
        configurations.llama_linear,
        {**SWIGLU, "LinearScalingRotaryEmbedding": "rotary_embedding"},
    ),
    Family(
        "Llama-YaRN",
        "rope scaled by wavelength, attention scaled",
        configurations.llama_yarn,
        {**SWIGLU, "YaRNScalingRotaryEmbedding": "rotary_embedding"},
    ),
    Family(
        "Gemma-2",
        "sliding and global layers, norms after each block; both soft caps off",
        configurations.gemma2,
        {"GemmaRMSNorm": "gemma_rms_norm", "GeluAndMul": "gelu_and_mul", **ROPE},
    ),
    Family(
        "Gemma-3",
        "sliding and global layers, norms of q and k; it rotates by itself",
        configurations.gemma3,
        {"Gemma3RMSNorm": "gemma_rms_norm", "GeluAndMul": "gelu_and_mul"},
    ),
    Family(
        "Mixtral",
        "softmax over the chosen experts",
        configurations.mixtral,
        {"RMSNorm": "rms_norm", **ROPE, **EXPERTS},
    ),
    Family(
        "Qwen3-MoE",
        "softmax over all experts, renormalised",
        configurations.qwen3_moe,
        {"RMSNorm": "rms_norm", **ROPE, **EXPERTS},
        fused="Qwen3MoeAttention.apply_qk_norm_rope",
    ),
    Family(
        "GLM-4",
        "half of each head rotated, in pairs; norms around each block",
        configurations.glm4,
        {**SWIGLU, **ROPE},
    ),
    Family(
        "GLM-4-MoE",
        "sigmoid scores with a correction bias, experts in groups, a shared expert",
        configurations.glm4_moe,
        {**SWIGLU, **ROPE, **BIASED_EXPERTS},
        fused="Glm4MoeAttention.forward_prepare",
    ),
    Family("Phi-3", "LongRoPE, which SGLang does not dispatch", configurations.phi3, SWIGLU),
    Family("OLMo-2", "norms after each block, of whole q and k", configurations.olmo2, {**SWIGLU, **ROPE}),
    Family("StarCoder2", "rope alone is dispatched", configurations.starcoder2, ROPE),
    Family(
        "GPT-2", "GELU's approximation; its norms are torch's", configurations.gpt2, {"NewGELU": "new_gelu"}
    ),
    Family(
        "Arcee",
        "squared ReLU",
        configurations.arcee,
        {"RMSNorm": "rms_norm", "ReLU2": "relu2", "YaRNScalingRotaryEmbedding": "rotary_embedding"},
        releases=Range(first="0.5.18"),  # before that SGLang pins the kernel of ReLU2
    ),
    Family(
        "Qwen2-VL",
        "positions in three axes, pictures through `QuickGELU`",
        configurations.qwen2_vl,
        {**SWIGLU, "MRotaryEmbedding": "mrope", "QuickGELU": "quick_gelu"},
        transformers.AutoModelForImageTextToText,
        pictures("Qwen2VLProcessor", "Qwen2VLVideoProcessor", 14),
        once=frozenset({"quick_gelu"}),
    ),
    Family(
        "Qwen2.5-VL",
        "positions in three axes, pictures seen in windows",
        configurations.qwen2_5_vl,
        {**SWIGLU, "MRotaryEmbedding": "mrope"},
        transformers.AutoModelForImageTextToText,
        pictures("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor", 14),
    ),
    Family(
        "Qwen3-VL",
        "positions in three interleaved axes, pictures enter several layers",
        configurations.qwen3_vl,
        {**SWIGLU, "MRotaryEmbedding": "mrope"},
        transformers.AutoModelForImageTextToText,
        pictures("Qwen3VLProcessor", "Qwen3VLVideoProcessor", 16),
    ),
    Family(
        "Qwen3-Next",
        "gated delta nets and gated attention, a shared expert with a gate; prompts in chunks",
        configurations.qwen3_next,
        {
            "GemmaRMSNorm": "gemma_rms_norm",
            "SiluAndMul": "silu_and_mul",
            **ROPE,
            **EXPERTS,
            **CONVOLUTION,
            **DELTA_RULE,
        },
        engine=IN_CHUNKS,
        shown_by=3,
        releases=WITHOUT_TRITON,
    ),
    Family(
        "Falcon-H1",
        "Mamba-2 beside attention in each layer; prompts in chunks",
        configurations.falcon_h1,
        {**SWIGLU, **ROPE, **MAMBA_2},
        engine=IN_CHUNKS,
        shown_by=3,
        releases=WITHOUT_TRITON,
    ),
    Family(
        "Qwen2-attention",
        "grouped queries by the attention of ours",
        configurations.qwen2,
        {**SWIGLU, **ROPE, **ATTENTION},
        engine=OURS,
        releases=PLAIN_PREFILL,
    ),
    Family(
        "Gemma-2-capped",
        "both soft caps, by the attention of ours in pages of 64; every second layer sees 16 tokens",
        configurations.capped_gemma2,
        {"GemmaRMSNorm": "gemma_rms_norm", "GeluAndMul": "gelu_and_mul", **ROPE, **ATTENTION},
        engine={"page_size": 64},
        releases=PLAIN_PREFILL,
    ),
    Family(
        "GPT-2-chunked",
        "as many heads of keys as of queries, prompts in chunks, by the attention of ours in pages of 16",
        configurations.gpt2,
        {"NewGELU": "new_gelu", **ATTENTION},
        engine={**OURS, "chunked_prefill_size": 64, "page_size": 16},
        releases=PLAIN_PREFILL,
    ),
    Family(
        "Qwen3.5",
        "gated delta nets beside the attention of ours; prompts in chunks",
        configurations.qwen3_5,
        {
            "GemmaRMSNorm": "gemma_rms_norm",
            "SiluAndMul": "silu_and_mul",
            "MRotaryEmbedding": "mrope",
            **ATTENTION,
            **CONVOLUTION,
            **DELTA_RULE,
        },
        engine={**OURS, **IN_CHUNKS},
        # The three positions of a token of text are one.
        no_mistakes=frozenset({"mrope.one_axis", "mrope.other_lanes"}),
        shown_by=3,
        releases=WITHOUT_TRITON,
    ),
    Family(
        "Granite-SWA",
        "sinks, and layers with a window in a pool of their own, by the attention of ours in pages of 64",
        configurations.granite_swa,
        {**SWIGLU, **ROPE, **ATTENTION},
        engine={"page_size": 64},
        releases=Range(first="0.5.23"),
        is_cached=False,
    ),
    Family(
        "DeepSeek-V2-Lite",
        "latent attention, softmax over all experts, by the attention of ours",
        configurations.deepseek_v2,
        {**SWIGLU, "DeepseekScalingRotaryEmbedding": "rotary_embedding", **EXPERTS, **LATENT_ATTENTION},
        releases=PLAIN_PREFILL,
    ),
    Family(
        "DeepSeek-V3",
        "latent queries too, sigmoid scores, experts in groups, by the attention of ours in pages of 64",
        configurations.deepseek_v3,
        {
            **SWIGLU,
            "DeepseekScalingRotaryEmbedding": "rotary_embedding",
            **BIASED_EXPERTS,
            **LATENT_ATTENTION,
        },
        engine={**OURS, "page_size": 64},
        releases=PLAIN_PREFILL,
    ),
    Family(
        "Moonlight",
        "latent attention without YaRN, prompts in chunks, by the attention of ours in pages of 16",
        configurations.moonlight,
        {**SWIGLU, **ROPE, **BIASED_EXPERTS, **LATENT_ATTENTION},
        engine={**OURS, "chunked_prefill_size": 64, "page_size": 16},
        no_mistakes=frozenset({"topk_sigmoid.ungrouped"}),
        releases=PLAIN_PREFILL,
    ),
    Family(
        "GPT-OSS",
        "sinks and windows, by the attention of ours; experts with biases and a limited gate",
        configurations.gpt_oss,
        {
            "RMSNorm": "rms_norm",
            "YaRNScalingRotaryEmbedding": "rotary_embedding",
            **EXPERTS,
            **ATTENTION,
        },
        releases=PLAIN_PREFILL,
        is_cached=False,
    ),
    Family(
        "Llama-4",
        "attention in chunks of 48 tokens, in a pool of their own; experts weighted before they compute; "
        "prompts in chunks, pages of 16",
        configurations.llama4,
        LLAMA_4,
        transformers.AutoModelForImageTextToText,
        engine={"chunked_prefill_size": 64, "page_size": 16},
        left=frozenset({"TopK"}),
        releases=CHUNKS,
        is_cached=False,
    ),
    Family(
        "Llama-4-one-pool",
        "the same with all keys in one pool, which keeps prefixes; prompts as a whole",
        configurations.llama4,
        LLAMA_4,
        transformers.AutoModelForImageTextToText,
        engine={"disable_hybrid_swa_memory": True},
        left=frozenset({"TopK"}),
        releases=CHUNKS,
    ),
)
BY_NAME = {family.name: family for family in FAMILIES}

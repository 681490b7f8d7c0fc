"""Model families: a tiny configuration of each, its random weights, and what SGLang runs it with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from sglang_fl.sglang_adapter.releases import CHUNKS, EVERY_RELEASE, PLAIN_PREFILL, WITHOUT_TRITON, Range
from tests.engine.words import SPECIAL, VOCABULARY, make_tokenizer

__all__ = ["ATTENTION", "FAMILIES", "IMAGE", "OURS", "Family", "make_model"]

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


#: What most families share. The eps is large enough to be seen, the context small enough to be scaled.
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-3,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}

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
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}


def qwen2() -> transformers.PreTrainedConfig:
    return transformers.Qwen2Config(**SHAPE)


def qwen3() -> transformers.PreTrainedConfig:
    return transformers.Qwen3Config(**SHAPE)


def llama(rope: dict[str, Any]) -> transformers.PreTrainedConfig:
    return transformers.LlamaConfig(**SHAPE, rope_parameters={"rope_theta": 10000.0, **rope})


def llama3() -> transformers.PreTrainedConfig:
    return llama(
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    )


def llama_linear() -> transformers.PreTrainedConfig:
    return llama({"rope_type": "linear", "factor": 4.0})


def llama_yarn() -> transformers.PreTrainedConfig:
    return llama(YARN)


def gemma3() -> transformers.PreTrainedConfig:
    return transformers.Gemma3TextConfig(
        **{**SHAPE, "tie_word_embeddings": True},
        query_pre_attn_scalar=32,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 100000.0, "factor": 8.0},
        },
    )


def gemma2(
    attention_cap: float | None = None, final_cap: float | None = None
) -> transformers.PreTrainedConfig:
    return transformers.Gemma2Config(
        **{**SHAPE, "tie_word_embeddings": True},
        query_pre_attn_scalar=32,
        sliding_window=16,
        attn_logit_softcapping=attention_cap,  # SGLang's attention in plain PyTorch does not cap
        final_logit_softcapping=final_cap,  # up to 0.5.21 SGLang caps the last logits with a Triton kernel
        hidden_act="gelu_pytorch_tanh",
    )


def capped_gemma2() -> transformers.PreTrainedConfig:
    return gemma2(attention_cap=1.0, final_cap=2.0)


def granite_swa() -> transformers.PreTrainedConfig:
    return transformers.GraniteSWAConfig(
        **without("head_dim"),
        attention_multiplier=32**-0.5,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )


def glm4() -> transformers.PreTrainedConfig:
    return transformers.Glm4Config(
        **SHAPE,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )


def mixtral() -> transformers.PreTrainedConfig:
    return transformers.MixtralConfig(**SHAPE, num_local_experts=6, num_experts_per_tok=2)


def qwen3_moe() -> transformers.PreTrainedConfig:
    return transformers.Qwen3MoeConfig(
        **SHAPE,
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=96,
        norm_topk_prob=True,
    )


def with_delta_nets(config: Any, **given: Any) -> transformers.PreTrainedConfig:
    """Return a configuration whose second layer has attention, and the others a gated delta net."""
    made = config(
        **SHAPE,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=32,
        full_attention_interval=2,
        **given,
    )
    made.full_attention_interval = 2  # SGLang reads it, and transformers does not keep it
    return made


def qwen3_next() -> transformers.PreTrainedConfig:
    return with_delta_nets(
        transformers.Qwen3NextConfig,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=96,
        shared_expert_intermediate_size=64,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    )


def qwen3_5() -> transformers.PreTrainedConfig:
    return with_delta_nets(
        transformers.Qwen3_5TextConfig,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    )


def falcon_h1() -> transformers.PreTrainedConfig:
    return transformers.FalconH1Config(
        **SHAPE,
        mamba_d_ssm=128,
        mamba_n_heads=4,
        mamba_n_groups=2,
        mamba_d_state=16,
        mamba_chunk_size=32,
        mamba_rms_norm=True,
        mamba_norm_before_gate=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ssm_multipliers=[0.9, 1.1, 0.8, 1.2, 1.05],
        ssm_in_multiplier=1.2,
        ssm_out_multiplier=0.8,
        key_multiplier=0.9,
    )


def glm4_moe() -> transformers.PreTrainedConfig:
    return transformers.Glm4MoeConfig(
        **SHAPE,
        attention_bias=True,
        use_qk_norm=True,
        moe_intermediate_size=96,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.5,
        first_k_dense_replace=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )


def latent(config: type[transformers.PreTrainedConfig], **options: Any) -> transformers.PreTrainedConfig:
    """Return a model with latent attention, whose values are narrower than its keys."""
    return config(
        **{**without("head_dim"), "num_key_value_heads": 4},
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=24,
        moe_intermediate_size=96,
        n_routed_experts=8,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        moe_layer_freq=1,  # SGLang reads it, as the published checkpoints have it, and the two below
        **options,
    )


def deepseek_v2() -> transformers.PreTrainedConfig:
    return latent(
        transformers.DeepseekV2Config,
        q_lora_rank=None,
        n_shared_experts=2,
        n_group=1,
        topk_group=1,
        scoring_func="softmax",
        rope_parameters={**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    )


def deepseek_v3() -> transformers.PreTrainedConfig:
    return latent(
        transformers.DeepseekV3Config,
        q_lora_rank=48,
        n_shared_experts=1,
        n_group=4,
        topk_group=2,
        num_mtp_layers=0,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        rope_parameters={**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    )


def moonlight() -> transformers.PreTrainedConfig:
    return latent(
        transformers.DeepseekV3Config,
        q_lora_rank=None,
        n_shared_experts=2,
        n_group=1,
        topk_group=1,
        num_mtp_layers=0,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
    )


def gpt_oss() -> transformers.PreTrainedConfig:
    return transformers.GptOssConfig(
        **SHAPE,
        num_local_experts=6,
        num_experts_per_tok=2,
        sliding_window=16,
        rope_parameters={**YARN, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    )


def llama4() -> transformers.PreTrainedConfig:
    # SGLang takes norms of q and k in bfloat16 on all but CUDA, whatever the model's dtype is.
    text = transformers.Llama4TextConfig(
        **{**SHAPE, "num_hidden_layers": 4},  # the last one sees all, and rotates nothing
        intermediate_size_mlp=160,
        num_local_experts=4,
        num_experts_per_tok=2,
        interleave_moe_layer_step=2,
        use_qk_norm=False,
        attention_chunk_size=48,
        floor_scale=32,
        attn_scale=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    # The checkpoint has a part that sees; without an index of its weights SGLang leaves that out.
    sees = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 256}
    sizes = {"image_size": 28, "projector_input_dim": 64, "projector_output_dim": 64}
    vision = transformers.Llama4VisionConfig(**sees, **sizes, vision_output_dim=64)
    return transformers.Llama4Config(text_config=text, vision_config=vision)


def phi3() -> transformers.PreTrainedConfig:
    factors = torch.linspace(1, 4, 16).tolist()
    return transformers.Phi3Config(
        **without("head_dim"),
        original_max_position_embeddings=64,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": factors,
            "long_factor": factors,
            "original_max_position_embeddings": 64,
        },
    )


def olmo2() -> transformers.PreTrainedConfig:
    return transformers.Olmo2Config(**without("head_dim"))


def starcoder2() -> transformers.PreTrainedConfig:
    return transformers.Starcoder2Config(**without("head_dim", "rms_norm_eps"), norm_epsilon=1e-3)


def gpt2() -> transformers.PreTrainedConfig:
    return transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=1024,
        n_embd=128,
        n_layer=3,
        n_head=4,
        layer_norm_epsilon=1e-3,
        bos_token_id=0,
        eos_token_id=1,
    )


def arcee() -> transformers.PreTrainedConfig:
    return transformers.ArceeConfig(**SHAPE, rope_parameters=YARN)


def vision(**options: Any) -> dict[str, Any]:
    """Return a tower of two layers; four patches make a token."""
    return {
        "depth": 2,
        "num_heads": 2,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        **options,
    }


def seeing_text(**rope: Any) -> dict[str, Any]:
    """Return heads of 64 elements, for which chips have kernels."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    return {**SHAPE, **heads, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **rope}}


VISION_TOKENS = {
    "image_token_id": SPECIAL.index("<|image_pad|>"),
    "video_token_id": SPECIAL.index("<|video_pad|>"),
    "vision_start_token_id": SPECIAL.index("<|vision_start|>"),
    "vision_end_token_id": SPECIAL.index("<|vision_end|>"),
}


def qwen2_vl() -> transformers.PreTrainedConfig:
    return transformers.Qwen2VLConfig(
        text_config=seeing_text(mrope_section=[8, 12, 12]),
        # SGLang reads in_chans, as the published checkpoints have it.
        vision_config=vision(patch_size=14, in_chans=3, embed_dim=64, hidden_size=128, mlp_ratio=2),
        **VISION_TOKENS,
    )


def qwen2_5_vl() -> transformers.PreTrainedConfig:
    return transformers.Qwen2_5_VLConfig(
        text_config=seeing_text(mrope_section=[8, 12, 12]),
        vision_config=vision(
            patch_size=14,
            hidden_size=64,
            intermediate_size=96,
            out_hidden_size=128,
            window_size=56,
            fullatt_block_indexes=[1],
        ),
        **VISION_TOKENS,
    )


def qwen3_vl() -> transformers.PreTrainedConfig:
    return transformers.Qwen3VLConfig(
        text_config=seeing_text(mrope_section=[11, 11, 10], mrope_interleaved=True),
        vision_config=vision(
            patch_size=16,
            hidden_size=64,
            intermediate_size=96,
            out_hidden_size=128,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0],
        ),
        **VISION_TOKENS,
    )


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


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in SHAPE.items() if name not in names}


#: Families by SGLang's own attention, and after them those by ours.
FAMILIES = (
    Family("Qwen2", "biases of q, k and v", qwen2, {**SWIGLU, **ROPE}),
    Family(
        "Qwen3",
        "norms of q and k, in one with the rotation",
        qwen3,
        {**SWIGLU, **ROPE},
        fused="Qwen3Attention.forward",
    ),
    Family(
        "Llama-llama3",
        "rope scaled by wavelength",
        llama3,
        {**SWIGLU, "Llama3RotaryEmbedding": "rotary_embedding"},
    ),
    Family(
        "Llama-linear",
        "rope with positions scaled",
        llama_linear,
        {**SWIGLU, "LinearScalingRotaryEmbedding": "rotary_embedding"},
    ),
    Family(
        "Llama-YaRN",
        "rope scaled by wavelength, attention scaled",
        llama_yarn,
        {**SWIGLU, "YaRNScalingRotaryEmbedding": "rotary_embedding"},
    ),
    Family(
        "Gemma-2",
        "sliding and global layers, norms after each block; both soft caps off",
        gemma2,
        {"GemmaRMSNorm": "gemma_rms_norm", "GeluAndMul": "gelu_and_mul", **ROPE},
    ),
    Family(
        "Gemma-3",
        "sliding and global layers, norms of q and k; it rotates by itself",
        gemma3,
        {"Gemma3RMSNorm": "gemma_rms_norm", "GeluAndMul": "gelu_and_mul"},
    ),
    Family("Mixtral", "softmax over the chosen experts", mixtral, {"RMSNorm": "rms_norm", **ROPE, **EXPERTS}),
    Family(
        "Qwen3-MoE",
        "softmax over all experts, renormalised",
        qwen3_moe,
        {"RMSNorm": "rms_norm", **ROPE, **EXPERTS},
        fused="Qwen3MoeAttention.apply_qk_norm_rope",
    ),
    Family("GLM-4", "half of each head rotated, in pairs; norms around each block", glm4, {**SWIGLU, **ROPE}),
    Family(
        "GLM-4-MoE",
        "sigmoid scores with a correction bias, experts in groups, a shared expert",
        glm4_moe,
        {**SWIGLU, **ROPE, **BIASED_EXPERTS},
        fused="Glm4MoeAttention.forward_prepare",
    ),
    Family("Phi-3", "LongRoPE, which SGLang does not dispatch", phi3, SWIGLU),
    Family("OLMo-2", "norms after each block, of whole q and k", olmo2, {**SWIGLU, **ROPE}),
    Family("StarCoder2", "rope alone is dispatched", starcoder2, ROPE),
    Family("GPT-2", "GELU's approximation; its norms are torch's", gpt2, {"NewGELU": "new_gelu"}),
    Family(
        "Arcee",
        "squared ReLU",
        arcee,
        {"RMSNorm": "rms_norm", "ReLU2": "relu2", "YaRNScalingRotaryEmbedding": "rotary_embedding"},
        releases=Range(first="0.5.18"),  # before that SGLang pins the kernel of ReLU2
    ),
    Family(
        "Qwen2-VL",
        "positions in three axes, pictures through `QuickGELU`",
        qwen2_vl,
        {**SWIGLU, "MRotaryEmbedding": "mrope", "QuickGELU": "quick_gelu"},
        transformers.AutoModelForImageTextToText,
        pictures("Qwen2VLProcessor", "Qwen2VLVideoProcessor", 14),
        once=frozenset({"quick_gelu"}),
    ),
    Family(
        "Qwen2.5-VL",
        "positions in three axes, pictures seen in windows",
        qwen2_5_vl,
        {**SWIGLU, "MRotaryEmbedding": "mrope"},
        transformers.AutoModelForImageTextToText,
        pictures("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor", 14),
    ),
    Family(
        "Qwen3-VL",
        "positions in three interleaved axes, pictures enter several layers",
        qwen3_vl,
        {**SWIGLU, "MRotaryEmbedding": "mrope"},
        transformers.AutoModelForImageTextToText,
        pictures("Qwen3VLProcessor", "Qwen3VLVideoProcessor", 16),
    ),
    Family(
        "Qwen3-Next",
        "gated delta nets and gated attention, a shared expert with a gate; prompts in chunks",
        qwen3_next,
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
        falcon_h1,
        {**SWIGLU, **ROPE, **MAMBA_2},
        engine=IN_CHUNKS,
        shown_by=3,
        releases=WITHOUT_TRITON,
    ),
    Family(
        "Qwen2-attention",
        "grouped queries by the attention of ours",
        qwen2,
        {**SWIGLU, **ROPE, **ATTENTION},
        engine=OURS,
        releases=PLAIN_PREFILL,
    ),
    Family(
        "Gemma-2-capped",
        "both soft caps, by the attention of ours in pages of 64; every second layer sees 16 tokens",
        capped_gemma2,
        {"GemmaRMSNorm": "gemma_rms_norm", "GeluAndMul": "gelu_and_mul", **ROPE, **ATTENTION},
        engine={"page_size": 64},
        releases=PLAIN_PREFILL,
    ),
    Family(
        "GPT-2-chunked",
        "as many heads of keys as of queries, prompts in chunks, by the attention of ours in pages of 16",
        gpt2,
        {"NewGELU": "new_gelu", **ATTENTION},
        engine={**OURS, "chunked_prefill_size": 64, "page_size": 16},
        releases=PLAIN_PREFILL,
    ),
    Family(
        "Qwen3.5",
        "gated delta nets beside the attention of ours; prompts in chunks",
        qwen3_5,
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
        granite_swa,
        {**SWIGLU, **ROPE, **ATTENTION},
        engine={"page_size": 64},
        releases=Range(first="0.5.23"),
        is_cached=False,
    ),
    Family(
        "DeepSeek-V2-Lite",
        "latent attention, softmax over all experts, by the attention of ours",
        deepseek_v2,
        {**SWIGLU, "DeepseekScalingRotaryEmbedding": "rotary_embedding", **EXPERTS, **LATENT_ATTENTION},
        releases=PLAIN_PREFILL,
    ),
    Family(
        "DeepSeek-V3",
        "latent queries too, sigmoid scores, experts in groups, by the attention of ours in pages of 64",
        deepseek_v3,
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
        moonlight,
        {**SWIGLU, **ROPE, **BIASED_EXPERTS, **LATENT_ATTENTION},
        engine={**OURS, "chunked_prefill_size": 64, "page_size": 16},
        no_mistakes=frozenset({"topk_sigmoid.ungrouped"}),
        releases=PLAIN_PREFILL,
    ),
    Family(
        "GPT-OSS",
        "sinks and windows, by the attention of ours; experts with biases and a limited gate",
        gpt_oss,
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
        llama4,
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
        llama4,
        LLAMA_4,
        transformers.AutoModelForImageTextToText,
        engine={"disable_hybrid_swa_memory": True},
        left=frozenset({"TopK"}),
        releases=CHUNKS,
    ),
)

"""A tiny configuration of each model family, as transformers has it."""

from typing import Any

import torch
import transformers

from tests.engine.words import SPECIAL, VOCABULARY

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


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in SHAPE.items() if name not in names}

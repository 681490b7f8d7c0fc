"""Real shapes of models for ``bench_engine``: what their ``config.json`` says, as far as it shapes the model.

A name that ends in ``-24L`` says that 24 of the model's layers are left: as many as let three engines fit
beside each other on a GPU with 139 GiB. The more layers, the less of a step at one request is the host's.
Where too few would fit, ``-24L-128E`` says that each layer has 128 of its experts left too; a token is sent
to as many of them as before, so that a step at one request reads as much.
"""

from typing import Any

__all__ = ["ARGUMENTS", "CONFIGS"]

QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "tie_word_embeddings": False,
    "head_dim": 128,
    "attention_bias": False,
}
QWEN3_MOE = QWEN3 | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
DEEPSEEK_V2_LITE = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1408,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
}
GLM_4_5_AIR = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "tie_word_embeddings": False,
    "head_dim": 128,
    "attention_bias": True,
    "use_qk_norm": False,
    "partial_rotary_factor": 0.5,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1408,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
}
GEMMA_3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "tie_word_embeddings": True,
    "head_dim": 256,
    "attention_bias": False,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 1024,
    "sliding_window_pattern": 6,
    "rope_local_base_freq": 1e4,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
}
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "tie_word_embeddings": False,
    "head_dim": 64,
    "attention_bias": True,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "swiglu_alpha": 1.702,
    "initial_context_length": 4096,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
}
QWEN3_NEXT = {
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "tie_word_embeddings": False,
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "attention_bias": False,
}
COMMON = {"hidden_act": "silu", "max_position_embeddings": 8192, "torch_dtype": "bfloat16"}


def config(base: dict[str, Any], *sizes: int, theta: float, eps: float) -> dict[str, Any]:
    """Return what ``config.json`` of the checkpoint says."""
    names = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "vocab_size"),
    )
    return COMMON | base | dict(zip(names, sizes, strict=True)) | {"rope_theta": theta, "rms_norm_eps": eps}


CONFIGS = {
    "tiny": config(QWEN2, 128, 256, 2, 4, 2, 512, theta=1e4, eps=1e-6),
    "Qwen2.5-0.5B": config(QWEN2, 896, 4864, 24, 14, 2, 151936, theta=1e6, eps=1e-6),
    "Llama-3-8B": config(LLAMA, 4096, 14336, 32, 32, 8, 128256, theta=5e5, eps=1e-5),
    "Llama-3-8B-FP8": config(LLAMA, 4096, 14336, 32, 32, 8, 128256, theta=5e5, eps=1e-5),
    "Qwen3-8B": config(QWEN3, 4096, 12288, 36, 32, 8, 151936, theta=1e6, eps=1e-6),
    "Gemma-3-4B": config(GEMMA_3, 2560, 10240, 34, 8, 4, 262208, theta=1e6, eps=1e-6),
    "Qwen3-30B-A3B-24L": config(QWEN3_MOE, 2048, 6144, 24, 32, 4, 151936, theta=1e6, eps=1e-6),
    "DeepSeek-V2-Lite": config(DEEPSEEK_V2_LITE, 2048, 10944, 27, 16, 16, 102400, theta=1e4, eps=1e-6),
    "GLM-4.5-Air-8L": config(GLM_4_5_AIR, 4096, 10944, 8, 96, 8, 151552, theta=1e6, eps=1e-5),
    # Three layers of linear attention, then one of full attention, six times.
    "Qwen3-Next-80B-A3B-24L-128E": config(QWEN3_NEXT, 2048, 5120, 24, 16, 2, 151936, theta=1e7, eps=1e-6)
    | {"num_experts": 128},
    "gpt-oss-20b-16L": config(GPT_OSS, 2880, 2880, 16, 64, 8, 201088, theta=1.5e5, eps=1e-5)
    | {"layer_types": ["sliding_attention", "full_attention"] * 8},
}

#: What the engine of a model is told beside ``--arguments``.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "Llama-3-8B-FP8": {"quantization": "fp8"},
    # Three times its weights come to 100 GiB, and an engine counts those of the others as taken.
    "GLM-4.5-Air-8L": {"mem_fraction_static": 0.9},
    # Its experts' other kernels come with a package that SGLang does not install.
    "gpt-oss-20b-16L": {"moe_runner_backend": "triton"},
    # A request's states are 36 MiB, and without a number of them the pool is made for thousands.
    "Qwen3-Next-80B-A3B-24L-128E": {"max_running_requests": 64, "mem_fraction_static": 0.95},
}

"""What the kernels of this package do not take, and why the other ops have none; for docs/ascend.md."""

__all__ = ["LIMITS", "NO_KERNEL"]

#: Of an op's kernel: the calls that it does not take.
LIMITS = {
    "rms_norm": "a weight of another dtype, all options",
    "gemma_rms_norm": "`post_residual_addition`; 310P",
    "layer_norm": "a weight of another dtype",
    "rotary_embedding": (
        "a cache of another dtype than the query; heads, or their rotated part, that are no multiple of 32 "
        "(float32: 16); 310P"
    ),
    "mrope": (
        "what `rotary_embedding` does not take; sections other than (11, 11, 10), (16, 24, 24), "
        "(24, 20, 20), (8, 12, 12); GLM's order of lanes"
    ),
    "topk_softmax": "groups of one or two experts",
    "topk_sigmoid": "groups of one or two experts",
    "fused_moe": "router weight on the input; 310P",
    "decode_attention": (
        "soft caps, temperatures, sinks, float32, several dtypes, values of another size than keys (latent "
        "attention), more than 64 query heads for one of keys; 310P"
    ),
    "extend_attention": (
        "soft caps, temperatures, sinks, masks of drafted tokens, several dtypes, values wider than keys, "
        "more than 1024 sequences; 310P"
    ),
}

#: Of an op without a kernel here: the reason.
NO_KERNEL = {
    "situ_and_mul": "torch_npu has none",
    "relu2": "torch_npu has none",
    "chunk_gated_delta_rule": (
        "`npu_chunk_gated_delta_rule` takes states in bfloat16, not SGLang's float32, and returns none "
        "between chunks"
    ),
    "fused_recurrent_gated_delta_rule_packed_decode": (
        "`npu_recurrent_gated_delta_rule` takes states in bfloat16, and has no padding"
    ),
    "fused_sigmoid_gating_delta_rule_update": (
        "`npu_recurrent_gated_delta_rule` takes states in bfloat16, and has no padding"
    ),
}

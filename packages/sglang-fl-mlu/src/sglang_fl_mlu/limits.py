"""What the kernels of this package do not take, and why the other ops have none; for docs/mlu.md."""

__all__ = ["LIMITS", "NO_KERNEL"]

#: Of an op's kernel: the calls that it does not take.
LIMITS = {
    "gelu_and_mul": "the tanh approximation",
    "rms_norm": "a weight of another dtype, all options",
    "layer_norm": "a weight of another dtype, a bias without weight",
    "rotary_embedding": "a float32 cache with 16-bit queries, heads over 256",
    "topk_softmax": "a bias with groups",
    "fused_moe": "router weight on the input",
    "decode_attention": (
        "soft caps, temperatures, a logarithm beside sinks, several dtypes, pools that are not dense (latent "
        "attention's are), more than 128 query heads for one of keys"
    ),
    "extend_attention": (
        "soft caps, temperatures, masks of drafted tokens, a logarithm beside sinks, several dtypes"
    ),
}

#: Of an op without a kernel here: the reason.
NO_KERNEL = {
    "gemma_rms_norm": (
        "the library takes no `1 + weight` in float32, and rounding it costs more than the contract allows"
    ),
    "new_gelu": "`active` has `gelu_approximate` in 1.12.1, and no caller of it was seen",
    "mrope": "`apply_rotary` takes one position for each token",
    "situ_and_mul": "no function was seen",
    "relu2": "no function was seen",
    "chunk_gated_delta_rule": "no function was seen",
    "fused_recurrent_gated_delta_rule_packed_decode": "no function was seen",
    "fused_sigmoid_gating_delta_rule_update": "no function was seen",
}

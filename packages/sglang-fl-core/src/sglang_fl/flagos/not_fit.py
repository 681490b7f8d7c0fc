"""Kernels of FlagGems that cannot serve an op of ours, and why, as of FlagGems 5.0.2; for ``docs/ops.md``.

FlagGems has no kernel at all for an op that has neither a file here nor a line below.
"""

__all__ = ["NOT_FIT"]

#: The op's name, and what keeps FlagGems' kernel from keeping its contract.
NOT_FIT = {
    "chunk_gated_delta_rule": "its states are (K, V), SGLang's (V, K), and not in a pool",
    "decode_attention": "its flash attention takes tables of pages of 32 slots or more, not lists of slots",
    "extend_attention": "its flash attention takes tables of pages of 32 slots or more, not lists of slots",
    "fused_sigmoid_gating_delta_rule_update": "it takes gates that are formed already",
    "kv_cache_write": "`reshape_and_cache_flash` has values as wide as keys, and no scales",
    "topk_sigmoid": "it forms the sigmoid as (1 + tanh) / 2, which cancels, in the dtype of the logits",
}

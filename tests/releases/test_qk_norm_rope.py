"""The methods that ``qk_norm_rope`` takes over are in every supported release as they were read."""

import pytest

from sglang_fl.sglang_adapter.layers.qk_norm_rope import ADAPTERS
from tests.releases.sources import RELEASES, body

pytestmark = pytest.mark.timeout(300)

_MODELS = "sglang.srt.models"
_QWEN3, _QWEN3_MOE = f"{_MODELS}.qwen3.Qwen3Attention", f"{_MODELS}.qwen3_moe.Qwen3MoeAttention"
_GLM4_MOE = f"{_MODELS}.glm4_moe.Glm4MoeAttention"
_SPLIT = "q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)"

#: What SGLang's code must say for an adapter to stand in for it.
PREMISES = {
    f"{_QWEN3}.forward": [
        "self.use_fused_qk_norm_mrope",
        "attn_output = self.attn(q, k, v, forward_batch, save_kv_cache=save_kv_cache)",
        "output, _ = self.o_proj(attn_output)\n        return output",
    ],
    f"{_QWEN3}.forward_prepare_native": [
        f"qkv, _ = self.qkv_proj(hidden_states)\n        {_SPLIT}",
        "q, k = self.rotary_emb(positions, q, k)\n        return q, k, v",
    ],
    f"{_QWEN3_MOE}.apply_qk_norm_rope": [_SPLIT, "self.compatible_with_fused_kv_buffer", "return q, k, v"],
    f"{_QWEN3_MOE}.forward_core": [
        "must_save_kv = self._used_fused_qk_norm_rope_last_call",
        "enable_fused_set_kv_buffer(forward_batch)\n            and self.compatible_with_fused_kv_buffer",
        "save_kv_cache=save_kv_cache",
    ],
    f"{_GLM4_MOE}.forward_prepare": [
        "return hidden_states, forward_batch, None",
        "q, k = self.rotary_emb(positions, q, k)",
        "inner_state = q, k, v, forward_batch\n        return None, forward_batch, inner_state",
    ],
    f"{_GLM4_MOE}.forward_core": ["attn_output = self.attn(*inner_state)"],
    f"{_MODELS}.utils.enable_fused_set_kv_buffer": [
        "pool.dtype == torch.bfloat16",
        "isinstance(pool, SWAKVPool)",
    ],
    f"{_MODELS}.utils.create_fused_set_kv_buffer_arg": [
        "layer.k_scale is None and layer.v_scale is None",
        "cache_loc=forward_batch.out_cache_loc",
    ],
    "sglang.srt.layers.radix_attention.RadixAttention.forward": [
        "v,\n        forward_batch: ForwardBatch,\n        save_kv_cache: bool = True,"
    ],
}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("target", PREMISES)
def test_the_code_is_as_it_was_read(target: str, release: str):
    text = body(release, target)
    assert text is not None
    assert [premise for premise in PREMISES[target] if premise not in text] == []


def test_each_method_that_is_taken_over_was_read():
    assert {adapter.layer_class.replace(":", ".") for adapter in ADAPTERS} <= PREMISES.keys()

"""SGLang's real engine on the simulated NPU, judged by transformers on the same weights in float32."""

from tests.simulated.judge import Setup
from tests.simulated.suite import *  # noqa: F403 - the tests

VENDOR = "vendor(vendor.ascend)"
DENSE = dict.fromkeys(("RMSNorm", "RotaryEmbedding", "SiluAndMul"), VENDOR)
SEEING = dict.fromkeys(("RMSNorm", "MRotaryEmbedding", "SiluAndMul"), VENDOR)
#: On an NPU SGLang norms and rotates q and k of Qwen3 itself, in one kernel, and its experts get their rows
#: sorted, which is not the form that the contract knows.
EXPERTS = {**dict.fromkeys(("RMSNorm", "TopK"), VENDOR), "UnquantizedFusedMoEMethod": "sglang(native)"}
ONE_KERNEL = frozenset(f"{name} → sglang(npu_norm_rope)" for name in ("RMSNorm", "RotaryEmbedding"))
GEMMA = dict.fromkeys(("Gemma3RMSNorm", "GeluAndMul"), VENDOR)

SETUPS = [
    Setup("Qwen3-MoE", EXPERTS, {"SGLANG_FL_STRICT": "1"}, beside=ONE_KERNEL),
    Setup("Gemma-3", GEMMA, {"SGLANG_FL_STRICT": "1"}),
    Setup("Qwen2", DENSE, {"SGLANG_FL_STRICT": "1"}, ranks=2),
    Setup("Qwen2", {}, {"SGLANG_FL_OOT_ENABLED": "0"}),
    # Pictures too must be seen by PyTorch's attention: SGLang's own for an NPU needs a chip.
    Setup("Qwen2.5-VL", SEEING, {"SGLANG_FL_STRICT": "1"}, engine={"mm_attention_backend": "sdpa"}),
]

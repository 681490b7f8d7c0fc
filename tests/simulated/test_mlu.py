"""SGLang's real engine on the simulated MLU, judged by transformers on the same weights in float32."""

from tests.simulated.judge import Setup
from tests.simulated.suite import *  # noqa: F403 - the tests

VENDOR, REFERENCE = "vendor(vendor.mlu)", "reference(reference)"
DENSE = dict.fromkeys(("RMSNorm", "RotaryEmbedding", "SiluAndMul"), VENDOR)
EXPERTS = dict.fromkeys(("RMSNorm", "RotaryEmbedding", "TopK", "UnquantizedFusedMoEMethod"), VENDOR)
#: Its norms have no kernel here, and its GELU is the approximated one, for which the kernel is not called.
GEMMA = dict.fromkeys(("Gemma3RMSNorm", "GeluAndMul"), REFERENCE)
SETUPS = [
    Setup("Qwen2", DENSE, {"SGLANG_FL_STRICT": "1"}),
    Setup("Qwen2", {}, {"SGLANG_FL_OOT_ENABLED": "0"}),
    Setup("Gemma-3", GEMMA, {}),
    Setup("Qwen3-MoE", EXPERTS, {"SGLANG_FL_STRICT": "1"}, ranks=2),
]

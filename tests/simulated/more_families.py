"""More families with the attention of ours on the simulated MLU.

``nox -s mlu -- tests/simulated/more_families.py``. They are not run with every push: what they show of the
library's kernels, ``test_attention`` shows by three.
"""

from tests.simulated.judge import Setup
from tests.simulated.suite import (  # noqa: F401 - the tests
    judged,
    pytest_generate_tests,
    pytestmark,
    test_exactly_the_expected_kernels_ran,
    test_it_ran_on_the_chip,
    test_tokens_and_probabilities_are_those_of_transformers,
)
from tests.simulated.test_attention import ATTENTION, DENSE, EXPERTS, REFERENCE, VENDOR, WRITTEN

NORM_AND_ROPE = dict.fromkeys(("RMSNorm", "RotaryEmbedding"), VENDOR)
DEEPSEEK = {
    **dict.fromkeys(("RMSNorm", "DeepseekScalingRotaryEmbedding", "SiluAndMul"), VENDOR),
    **EXPERTS,
    **ATTENTION,
}
OURS = {"attention_backend": "sglang_fl"}

SETUPS = [
    Setup("Qwen2-attention", {**DENSE, **WRITTEN}, {}),
    Setup("Qwen3-MoE", {**NORM_AND_ROPE, **EXPERTS, **WRITTEN}, {}, engine=OURS),
    Setup("DeepSeek-V2-Lite", DEEPSEEK, {}),
    Setup("DeepSeek-V3", DEEPSEEK, {}),
    Setup(
        "GPT-OSS",
        {
            **dict.fromkeys(("RMSNorm", "TopK", "YaRNScalingRotaryEmbedding"), VENDOR),
            **WRITTEN,
            "UnquantizedFusedMoEMethod": REFERENCE,
        },
        {"SGLANG_FL_PER_OP": "fused_moe=vendor|reference"},
        engine={"moe_runner_backend": "triton"},
    ),
]

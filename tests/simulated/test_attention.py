"""The attention of ours on a simulated chip, by the kernels of its library."""

from tests.simulated.judge import Setup
from tests.simulated.suite import (  # noqa: F401 - the tests; what it asks of the chip is of other models
    judged,
    pytest_generate_tests,
    pytestmark,
    test_exactly_the_expected_kernels_ran,
    test_it_ran_on_the_chip,
    test_tokens_and_probabilities_are_those_of_transformers,
)

VENDOR, REFERENCE = "vendor(vendor.mlu)", "reference(reference)"
ATTENTION = dict.fromkeys(("AttentionKernels.decode", "AttentionKernels.extend"), VENDOR)
DENSE = dict.fromkeys(("RMSNorm", "RotaryEmbedding", "SiluAndMul"), VENDOR)
EXPERTS = dict.fromkeys(("TopK", "UnquantizedFusedMoEMethod"), VENDOR)

WRITTEN = {**ATTENTION, "AttentionKernels.write": REFERENCE}

SETUPS = [
    Setup("Granite-SWA", {**DENSE, **WRITTEN}, {"SGLANG_FL_STRICT": "1"}),
    Setup("GPT-2-chunked", {"NewGELU": REFERENCE, **WRITTEN}, {}),
    Setup("Moonlight", {**DENSE, **EXPERTS, **ATTENTION}, {}),
]

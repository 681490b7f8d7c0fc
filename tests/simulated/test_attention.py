"""The attention of ours on a simulated chip, for a model that SGLang's own computes wrongly."""

from tests.simulated.judge import Setup
from tests.simulated.suite import (  # noqa: F401 - the tests; what it asks of the chip is of other models
    judged,
    pytest_generate_tests,
    pytestmark,
    test_exactly_the_expected_kernels_ran,
    test_it_ran_on_the_chip,
    test_tokens_and_probabilities_are_those_of_transformers,
)

VENDOR = "vendor(vendor.mlu)"
DENSE = dict.fromkeys(("RMSNorm", "RotaryEmbedding", "SiluAndMul"), VENDOR)
ATTENTION = dict.fromkeys(("AttentionKernels.decode", "AttentionKernels.extend"), "reference(reference)")

SETUPS = [Setup("Granite-SWA", {**DENSE, **ATTENTION}, {})]

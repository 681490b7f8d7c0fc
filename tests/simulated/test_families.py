"""More model families on the attention of ours, on the simulated MLU."""

from tests.engine.models import FAMILIES, OURS
from tests.simulated.judge import Setup
from tests.simulated.suite import (  # noqa: F401 - the tests; what it asks of the chip is of other models
    judged,
    pytest_generate_tests,
    pytestmark,
    test_it_ran_on_the_chip,
    test_tokens_and_probabilities_are_those_of_transformers,
)

NAMES = (
    *("Qwen2", "Qwen3", "Llama-llama3", "Gemma-3", "Mixtral"),
    *("Qwen3-MoE", "GLM-4-MoE", "Phi-3", "OLMo-2", "GPT-2"),
)

SETUPS = [Setup(family.name, {}, {}, engine=OURS) for family in FAMILIES if family.name in NAMES]

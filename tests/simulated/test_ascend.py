"""SGLang's real engine on the simulated NPU, judged by transformers on the same weights in float32."""

from functools import partial

import pytest

from tests.engine.test_models import assert_agrees
from tests.simulated.judge import Judged, Setup, judge

pytestmark = pytest.mark.timeout(300)

VENDOR = "vendor(vendor.ascend)"
DENSE = dict.fromkeys(("RMSNorm", "RotaryEmbedding", "SiluAndMul"), VENDOR)
#: On an NPU SGLang norms and rotates q and k of Qwen3 itself, in one kernel, and its experts get their rows
#: sorted, which is not the form that the contract knows.
EXPERTS = {**dict.fromkeys(("RMSNorm", "TopK"), VENDOR), "UnquantizedFusedMoEMethod": "sglang(native)"}
#: The lines of that one kernel, by family.
SHORTCUTS = {"Qwen3-MoE": {f"{name} → sglang(npu_norm_rope)" for name in ("RMSNorm", "RotaryEmbedding")}}
GEMMA = dict.fromkeys(("Gemma3RMSNorm", "GeluAndMul"), VENDOR)
SEEING = dict.fromkeys(("RMSNorm", "MRotaryEmbedding", "SiluAndMul"), VENDOR)

SETUPS = [
    Setup("Qwen3-MoE", EXPERTS, {"SGLANG_FL_STRICT": "1"}),
    Setup("Gemma-3", GEMMA, {"SGLANG_FL_STRICT": "1"}),
    Setup("Qwen2", DENSE, {"SGLANG_FL_STRICT": "1"}, ranks=2),
    # Pictures too must be seen by PyTorch's attention: SGLang's own for an NPU needs a chip.
    Setup("Qwen2.5-VL", SEEING, {"SGLANG_FL_STRICT": "1"}, engine={"mm_attention_backend": "sdpa"}),
]


@pytest.fixture(scope="module", params=SETUPS, ids=str)
def judged(request, tmp_path_factory, simulating) -> Judged:
    return judge(request.param, tmp_path_factory.mktemp("ascend"), partial(simulating, "ascend"))


@pytest.mark.parametrize("asked", ["prompts", "followers"])
def test_tokens_and_probabilities_are_those_of_transformers(judged: Judged, asked: str):
    assert_agrees(judged.differences[asked])


def test_exactly_the_expected_kernels_ran(judged: Judged):
    expected = {f"{name} → {ran}" for name, ran in judged.setup.runs.items()}
    expected |= SHORTCUTS.get(judged.setup.family, set())
    assert judged.dispatched == {f"[OOT-DISPATCH] {line}" for line in expected}

"""SGLang's real engine on the simulated MLU, judged by transformers on the same weights in float32."""

from functools import partial

import pytest

from tests.engine.test_models import assert_agrees
from tests.simulated.judge import NEEDS, Judged, Setup, judge, written_down

pytestmark = pytest.mark.timeout(300)

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


@pytest.fixture(scope="module", params=SETUPS, ids=str)
def judged(request, tmp_path_factory, simulating) -> Judged:
    return judge(request.param, tmp_path_factory.mktemp("mlu"), partial(simulating, "mlu"))


@pytest.mark.parametrize("asked", ["prompts", "followers"])
def test_tokens_and_probabilities_are_those_of_transformers(judged: Judged, asked: str):
    assert_agrees(judged.differences[asked])


def test_exactly_the_expected_kernels_ran(judged: Judged):
    expected = {f"[OOT-DISPATCH] {name} → {ran}" for name, ran in judged.setup.runs.items()}
    assert judged.dispatched == expected


def test_it_ran_on_the_chip(judged: Judged):
    assert "aten::mm.out" in judged.asked
    assert {"torch.mlu.current_stream", "torch.mlu.mem_get_info"} < judged.asked
    assert not [name for name in judged.asked if name.endswith(" missing")]


def test_what_it_asks_of_the_chip_is_written_down(judged: Judged):
    assert judged.asked <= written_down(judged.setup.column), f"see {NEEDS.name}"

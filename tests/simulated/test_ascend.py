"""SGLang's real engine on the simulated NPU, judged by transformers on the same weights in float32."""

import os
from pathlib import Path

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
#: The default leaves ten gigabytes to what a chip needs beside weights and cache.
MEMORY = {"mem_fraction_static": 0.3}

SETUPS = [
    Setup("Qwen3-MoE", EXPERTS, {"SGLANG_FL_STRICT": "1"}, engine=MEMORY),
    Setup("Gemma-3", GEMMA, {"SGLANG_FL_STRICT": "1"}, engine=MEMORY),
    Setup("Qwen2", DENSE, {"SGLANG_FL_STRICT": "1"}, ranks=2, engine=MEMORY),
]


@pytest.fixture(scope="module")
def platform(tmp_path_factory) -> str:
    """A folder for PYTHONPATH that brings the platform and its entry point."""
    folder = tmp_path_factory.mktemp("platform")
    metadata = folder / "npu_platform-0.0.1.dist-info"
    metadata.mkdir()
    (folder / "npu_platform.py").write_text((Path(__file__).parent / "npu_platform.py").read_text())
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: npu_platform\nVersion: 0.0.1\n")
    point = "[sglang.srt.platforms]\nsimulated_npu = npu_platform:activate\n"
    (metadata / "entry_points.txt").write_text(point)
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


@pytest.fixture(scope="module", params=SETUPS, ids=str)
def judged(request, tmp_path_factory, simulating, platform) -> Judged:
    def environment(settings: dict[str, str]) -> dict[str, str]:
        return simulating("ascend", {**settings, "PYTHONPATH": platform})

    return judge(request.param, tmp_path_factory.mktemp("ascend"), environment)


@pytest.mark.parametrize("asked", ["prompts", "followers"])
def test_tokens_and_probabilities_are_those_of_transformers(judged: Judged, asked: str):
    assert_agrees(judged.differences[asked])


def test_exactly_the_expected_kernels_ran(judged: Judged):
    expected = {f"{name} → {ran}" for name, ran in judged.setup.runs.items()}
    expected |= SHORTCUTS.get(judged.setup.family, set())
    assert judged.dispatched == {f"[OOT-DISPATCH] {line}" for line in expected}

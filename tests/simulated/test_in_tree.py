"""SGLang has a platform for MLUs itself, one day: ours steps aside, and layer 2 binds all the same."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.engine.judge import assert_agrees
from tests.programs import finish, server_of_forks
from tests.simulated.in_tree import KEY, MARK, with_platform
from tests.simulated.judge import Judged, Setup, judge

pytestmark = pytest.mark.timeout(300)

_ASK = """
import json
from sglang.srt.platforms import current_platform as platform
from sglang.kernels.fused_op import _platform_key
named = [type(platform).__module__, platform.is_out_of_tree(), _platform_key()]
print("RESULT", json.dumps(named))
"""
VENDOR, LEFT = "vendor(vendor.mlu)", "sglang(native)"


@pytest.fixture(scope="module")
def environment(tmp_path_factory, simulating):
    """Return a function that makes an environment in which SGLang has a platform for the simulated MLU."""
    spec = find_spec("sglang")
    assert spec
    assert spec.origin
    folder = with_platform(Path(spec.origin).parent, tmp_path_factory.mktemp("in-tree"))

    def environment(settings):
        return simulating("mlu", {"PYTHONPATH": str(folder), **settings})

    return environment


@pytest.fixture(
    scope="module",
    params=[
        Setup("Qwen2", dict.fromkeys(("RMSNorm", "RotaryEmbedding", "SiluAndMul"), VENDOR), {}),
        Setup(
            "Qwen2",
            {"RMSNorm": VENDOR, "RotaryEmbedding": VENDOR, "SiluAndMul": LEFT},
            {"SGLANG_FL_OOT_BLACKLIST": "silu_and_mul"},
        ),
    ],
    ids=["all ours", "one left to SGLang"],
)
def judged(request, tmp_path_factory, environment) -> Judged:
    """What the engine did; whether SGLang's own kernel ran is what its layer class must say."""
    folder = tmp_path_factory.mktemp("mlu")
    mark = folder / "mark"
    done = judge(
        request.param, folder, lambda given: environment({MARK: str(mark), **given}), server_of_forks()
    )
    assert mark.exists() == (request.param.runs["SiluAndMul"] == LEFT)
    return done


def test_our_platform_steps_aside(environment):
    done = finish([sys.executable, "-c", _ASK], environment({}), 100)
    assert done.result == ["sglang.srt.platforms.mlu", False, KEY], done.output[-3000:]


def test_layer_2_binds_and_what_is_left_is_sglangs_own(judged: Judged):
    expected = {f"{name} → {ran}" for name, ran in judged.setup.runs.items()}
    expected.add("RadixAttention → sglang(torch_native)")
    assert judged.dispatched == {f"[OOT-DISPATCH] {line}" for line in expected}


@pytest.mark.parametrize("asked", ["prompts", "followers"])
def test_answers_are_those_of_transformers(judged: Judged, asked: str):
    assert_agrees(judged.differences[asked])

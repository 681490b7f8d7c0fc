"""Experts and layers spread over two ranks on the CPU, and a server that only decodes."""

import json
import sys
from collections import Counter
from inspect import signature
from pathlib import Path

import pytest
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.numa_utils import init_threads_binding

from tests.engine.judge import assert_agrees
from tests.engine.release import RELEASE, present
from tests.programs import finish, server_for
from tests.simulated.judge import Judged, Setup, judge

pytestmark = pytest.mark.timeout(300)

REFERENCE, ATTENTION = "reference(reference)", "RadixAttention → sglang(torch_native)"
BIND = "SGLANG_CPU_OMP_THREADS_BIND"
TWO_CORES = {BIND: "0|1"}
#: Cores are bound by rank; up to 0.5.17 by rank of tensor parallelism alone, of which layers spread have one.
CORES_OF_LAYERS = TWO_CORES if "world_size" in signature(init_threads_binding).parameters else {BIND: "0-1"}
#: Where experts on two ranks of a CPU are none that SGLang knows: without the plugin it ends with an error.
NO_SUCH_EXPERTS = ("0.5.17", "0.5.20")
EXPERTS = ("RMSNorm", "RotaryEmbedding", "TopK", "UnquantizedFusedMoEMethod")
DENSE = ("RMSNorm", "RotaryEmbedding", "SiluAndMul")
SPREAD = {
    "experts": Setup(
        "Qwen3-MoE", dict.fromkeys(EXPERTS, REFERENCE), TWO_CORES, ranks=2, engine={"ep_size": 2}
    ),
    "layers": Setup("Qwen2", dict.fromkeys(DENSE, REFERENCE), CORES_OF_LAYERS, engine={"pp_size": 2}),
}


@pytest.fixture(scope="module", params=SPREAD)
def judged(request, tmp_path_factory, environment_of) -> tuple[Judged, list[str]]:
    """What the engine did, with each line of the log of all ranks."""
    folder = tmp_path_factory.mktemp(request.param)
    done = judge(SPREAD[request.param], folder, environment_of)
    return done, (folder / "dispatch.log").read_text().splitlines()


@pytest.mark.parametrize("asked", ["prompts", "followers"])
def test_spread_over_two_ranks_the_answers_are_those_of_transformers(judged, asked: str):
    if judged[0].setup.family == "Qwen3-MoE" and str(RELEASE) in NO_SUCH_EXPERTS:
        pytest.skip(f"SGLang {RELEASE} itself has no experts on two ranks of a CPU: it ends with an error")
    assert_agrees(judged[0].differences[asked])


def test_both_ranks_tell_what_runs_their_layers(judged):
    done, lines = judged
    wanted = [f"{name} → {ran}" for name, ran in done.setup.runs.items()]
    assert Counter(lines) == {f"[OOT-DISPATCH] {line}": 2 for line in [*wanted, ATTENTION]}


_DECODE = """
import json, sys
import sglang

if __name__ == "__main__":
    engine = sglang.Engine(**json.loads(sys.argv[1]))
    answer = engine.generate(
        input_ids=[5, 6, 7, 8],
        sampling_params={"max_new_tokens": 4, "ignore_eos": True},
        bootstrap_host="2.2.2.2",  # SGLang's name for a prefill that never was
        bootstrap_port=0,
        bootstrap_room=1,
    )
    engine.shutdown()
    print("RESULT", json.dumps(answer["meta_info"]))
"""


@present(hasattr(ServerArgs, "disaggregation_decode_retraction_backup"), "decode server without a GPU")
def test_the_layers_of_a_decode_server_are_dispatched(tiny_model: Path, tmp_path: Path, environment_of):
    """Nothing is transferred: SGLang's transfers need a GPU, but for the one that only pretends."""
    (tmp_path / "decode.py").write_text(_DECODE)
    log = tmp_path / "dispatch.log"
    arguments = {
        "model_path": str(tiny_model),
        "max_total_tokens": 2048,
        "disaggregation_mode": "decode",
        "disaggregation_transfer_backend": "fake",
        "disaggregation_decode_retraction_backup": "cpu_tensor",
    }
    variables = environment_of({"SGLANG_FL_DISPATCH_LOG": str(log)})
    command = [sys.executable, str(tmp_path / "decode.py"), json.dumps(arguments)]
    done = finish(command, variables, 200, server_for(variables))
    assert done.code == 0, done.output[-3000:]
    assert done.result["completion_tokens"] == 4
    wanted = [*(f"{name} → {REFERENCE}" for name in DENSE), ATTENTION]
    assert set(log.read_text().splitlines()) == {f"[OOT-DISPATCH] {line}" for line in wanted}

"""The manual steps, bisect and verify on an NVIDIA GPU: FlagGems' ATen kernels, CUDA graphs, the real server.

``TEST_LOGS`` keeps the logs, and the page that is made of them.
"""

import os
from pathlib import Path

import pytest

from tests.gpu.diagnose import GPU, Findings, Step, diagnose

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]

#: Kernels that round differently may swap two tokens whose log-probabilities are this close (nats).
SURE = 0.3
FUSED = {"RMSNorm": "rms_norm", "RotaryEmbedding": "rotary_embedding", "SiluAndMul": "silu_and_mul"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    folder = Path(os.environ.get("TEST_LOGS") or tmp_path_factory.mktemp("diagnose")).resolve()
    return diagnose(GPU, folder)


def served(step: Step) -> None:
    assert not step.failure, f"{step.title}: {step.failure}"
    assert step.apart is not None
    assert all(margin < SURE for _, _, margin in step.apart.flips), f"{step.title}: {step.apart}"


def test_each_manual_step_serves_and_is_as_sure_of_the_same_tokens(found: Findings):
    for step in found.steps:
        served(step)


def test_layer_2_alone_runs_our_kernels(found: Findings):
    assert found.steps[1].dispatch == [f"[OOT-DISPATCH] {name} → flagos(flagos)" for name in FUSED]
    assert found.steps[1].aten is None


@pytest.mark.parametrize(("number", "op"), [(2, "rms_norm"), (3, "silu_and_mul"), (4, "rotary_embedding")])
def test_one_op_alone_runs_our_kernel(found: Findings, number: int, op: str):
    assert found.steps[number].dispatch == [
        f"[OOT-DISPATCH] {name} → {'flagos(flagos)' if own == op else 'reference(reference)'}"
        for name, own in FUSED.items()
    ]


def test_layer_1_alone_leaves_layer_2_alone(found: Findings):
    for step in found.steps[5:]:
        assert step.dispatch is None, step.title
        assert step.aten is not None, step.title


def test_the_record_names_what_a_white_list_lets_run(found: Findings):
    two, all_of_them = found.steps[6].aten, found.steps[7].aten
    assert {name.split(".")[0] for name in two} <= {"aten::mul", "aten::add"}
    assert {*two} <= {*all_of_them}
    assert len(all_of_them) >= 10


def test_bisect_comes_to_a_verdict_over_all_aten_ops(found: Findings):
    assert found.bisections["as they are"]["outcome"] in ("nothing_found", "found")


def test_bisect_finds_nothing_among_right_kernels(found: Findings):
    verdict = found.bisections["without the culprits"]
    assert verdict["outcome"] == "nothing_found", verdict


def test_bisect_finds_the_planted_kernels_by_name(found: Findings):
    verdict = found.bisections["two wrong kernels planted"]
    assert verdict["outcome"] == "found", verdict
    found_as_they_are = {culprit["name"] for culprit in found.bisections["as they are"]["culprits"]}
    assert {culprit["name"] for culprit in verdict["culprits"]} == found.planted | found_as_they_are
    assert len(found.planted) == 2


def test_a_live_server_says_nothing_of_right_kernels(found: Findings):
    for step in (found.checks[0], found.checks[2]):
        served(step)
        assert any("checking one call in 1 of " in said for said in step.warnings), step.title
        assert not any(" units of " in said for said in step.warnings), step.warnings


def test_a_live_server_with_graphs_tells_of_a_wrong_kernel_by_its_layer(found: Findings):
    said = found.checks[1].warnings
    assert any(text.startswith("silu_and_mul in model.layers.0.mlp.act_fn: result 0: ") for text in said), (
        said
    )
    assert not any(text.startswith(("rms_norm", "rotary_embedding")) for text in said), said

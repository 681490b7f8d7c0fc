"""``SGLANG_FL_VERIFY`` in the real engine: a wrong kernel is told of by the layer it runs in."""

from pathlib import Path

import pytest

from tests.engine.fake_vendor import install_vendor

pytestmark = pytest.mark.timeout(400)

VENDOR = (Path(__file__).parent / "faulty_vendor.py").read_text()


def test_a_wrong_kernel_is_told_of_once_for_each_shape_and_its_result_is_served(run_offline, tmp_path: Path):
    planted = tmp_path / "planted"
    planted.mkdir()
    (planted / "fused").touch()
    settings = {
        "PYTHONPATH": str(install_vendor(tmp_path / "site", "faulty", VENDOR)),
        "FAULTS_FOLDER": str(planted),
        "USE_FLAGGEMS": "0",
        "SGLANG_FL_VERIFY": "rms_norm,silu_and_mul",
        "SGLANG_FL_VERIFY_RATE": "1",
    }
    run = run_offline(settings)
    assert run.code == 0, run.output[-3000:]
    assert run.output.count("checking one call in 1 of rms_norm, silu_and_mul") == 1
    told = [line for line in run.output.splitlines() if " units of " in line]
    # Once for the prompt and once for the steps of one token, by the first of the two layers.
    assert len(told) == 2, told
    assert all("silu_and_mul in model.layers.0.mlp.act_fn: result 0: " in line for line in told)
    assert {line.rpartition("shapes: ")[2] for line in told} == {"x (6, 512)", "x (1, 512)"}
    assert len(run.result["tokens"]) == 8

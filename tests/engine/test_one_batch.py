"""SGLang's processes that load no plugins: the platform loads them there."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.programs import finish

pytestmark = pytest.mark.timeout(400)


def test_one_batch_runs_our_ops_and_says_that_sglang_loads_no_plugins(
    tiny_model: Path, environment_of, tmp_path: Path
):
    log = tmp_path / "dispatch.log"
    config = json.loads((tiny_model / "config.json").read_text())
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    # The benchmark draws tokens up to 10,000; random weights of that many are as good as any.
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 10240}))
    words = ("--device", "cpu", "--batch-size", "1", "--input-len", "8", "--output-len", "4")
    run = finish(
        [
            *(sys.executable, "-m", "sglang.benchmark.one_batch", "--model-path", str(model), *words),
            *(
                "--max-total-tokens",
                "2048",
                "--load-format",
                "dummy",
                "--result-filename",
                str(tmp_path / "result"),
            ),
        ],
        environment_of({"SGLANG_FL_DISPATCH_LOG": str(log)}),
        timeout=300,
    )
    assert run.code == 0, run.output[-3000:]
    assert {line.split()[1] for line in log.read_text().splitlines()} == {
        "RMSNorm",
        "RotaryEmbedding",
        "SiluAndMul",
    }
    told = [line for line in run.output.splitlines() if "SGLang loads no plugins in this process" in line]
    assert len(told) == 1, run.output[-3000:]

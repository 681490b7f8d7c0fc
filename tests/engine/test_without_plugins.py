"""SGLang's processes that load no plugins: the platform loads them there."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from packaging.version import Version

from sglang_fl.sglang_adapter.seams import installed_version
from tests.engine.models import FAMILIES, make_model
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
            *("--max-total-tokens", "2048", "--load-format", "dummy"),
            *("--result-filename", str(tmp_path / "result")),
        ],
        environment_of({"SGLANG_FL_DISPATCH_LOG": str(log)}),
        timeout=300,
    )
    assert run.code == 0, run.output[-3000:]
    assert {line.split()[1] for line in log.read_text().splitlines()} == {
        "RMSNorm",
        "RadixAttention",
        "RotaryEmbedding",
        "SiluAndMul",
    }
    assert_told_once(run.output)


#: Where SGLang has both as they are built here.
FIRST = Version("0.5.23")


@pytest.mark.skipif(installed_version() < FIRST, reason=f"SGLang builds them otherwise before {FIRST}")
@pytest.mark.parametrize(("process", "family"), [("ray", "Qwen2"), ("encoder", "Qwen2.5-VL")])
def test_rays_actor_and_an_encoder_run_our_ops_too(process: str, family: str, environment_of, tmp_path: Path):
    log, script = tmp_path / "dispatch.log", Path(__file__).with_name("without_plugins.py")
    make_model(next(known for known in FAMILIES if known.name == family), tmp_path / "model")
    command = [sys.executable, str(script), process, str(tmp_path / "model")]
    run = finish(command, environment_of({"SGLANG_FL_DISPATCH_LOG": str(log)}), timeout=150)
    assert run.code == 0, run.output[-3000:]
    assert log.read_text() == "[OOT-DISPATCH] RMSNorm → reference(reference)\n"
    assert_told_once(run.output)


def assert_told_once(output: str) -> None:
    told = [line for line in output.splitlines() if "SGLang loads no plugins in this process" in line]
    assert len(told) == 1, output[-3000:]

"""SGLang's processes that load no plugins: the platform loads them there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(400)


def test_one_batch_runs_our_ops_and_says_that_sglang_loads_no_plugins(tiny_model: Path, tmp_path: Path):
    log = tmp_path / "dispatch.log"
    ours = ("SGLANG_", "USE_FLAGGEMS")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    words = ("--device", "cpu", "--batch-size", "1", "--input-len", "8", "--output-len", "4")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sglang.benchmark.one_batch", "--model-path", str(tiny_model), *words),
            *("--max-total-tokens", "2048"),
        ],
        cwd=tmp_path,
        env=clean | {"SGLANG_FL_DISPATCH_LOG": str(log), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {line.split()[1] for line in log.read_text().splitlines()} == {
        "RMSNorm",
        "RotaryEmbedding",
        "SiluAndMul",
    }
    told = [line for line in done.stderr.splitlines() if "SGLang loads no plugins in this process" in line]
    assert len(told) == 1, done.stderr[-3000:]

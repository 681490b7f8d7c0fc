"""``sglang-fl profile`` on the real engine: three families, by who ran what; nothing is left behind.

The engine is a program that is forked with SGLang loaded; Ctrl-C meets the real process.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sglang_fl.cli import app
from sglang_fl.profiling import procedure
from sglang_fl.profiling.pieces import Who
from sglang_fl.sglang_adapter.releases import PLAIN_PREFILL, WITHOUT_TRITON
from tests.engine.fake_vendor import install_vendor
from tests.engine.models import BY_NAME, make_model
from tests.engine.release import RELEASE, present
from tests.programs import ROOT, processes_with, server_for
from tests.schemas import assert_fits

pytestmark = pytest.mark.timeout(400)

COMMAND = (sys.executable, str(Path(sys.executable).with_name("sglang-fl")), "profile")
CPU = ("--device", "cpu", "--max-total-tokens", "2048", "--max-mamba-cache-size", "16")
SMALL = ("--batch", "2", "--prefill", "24", "--decode", "3")
#: Of each family: the attention backend, what is ours in decode and prefill, what is left to SGLang.
RUNS = {
    "Qwen2": (
        "torch_native",
        {"rms_norm", "silu_and_mul", "rotary_embedding"},
        {"QKVParallelLinear", "RadixAttention (torch_native)", "VocabParallelEmbedding"},
    ),
    "Qwen3-MoE": (
        "sglang_fl",
        {"rms_norm", "topk_softmax", "fused_moe", "decode_attention"},
        {"QKVParallelLinear", "ReplicatedLinear"},
    ),
    "Qwen3-Next": (
        "torch_native",
        {"gemma_rms_norm", "fused_recurrent_gated_delta_rule_packed_decode", "causal_conv1d_update"},
        {"MergedColumnParallelLinear", "FusedRMSNormGated"},
    ),
}
#: Of those that not all releases run, what they need.
NEEDS = {
    "Qwen3-MoE": present(RELEASE in PLAIN_PREFILL, "attention of ours"),
    "Qwen3-Next": present(RELEASE in WITHOUT_TRITON, "linear attention without Triton"),
}
#: A vendor package with a kernel of layer 2 and one of layer 1.
VENDOR = """
from sglang_fl.ops import OPS
from sglang_fl.vendor import AtenChoice, AtenKernel, AtenOffer, AtenOp, BackendKind, OpImpl, Vendor
import torch


def why_unavailable():
    return None


def silu_and_mul(x):
    return OPS["silu_and_mul"].reference(x)


def argmax(x, dim=None, keepdim=False):
    return x.max(dim, keepdim).indices


def ops():
    return (AtenOp("argmax", "argmax"),)


def kernels():
    return (AtenKernel("argmax", "argmax", argmax),)


VENDOR = Vendor(
    "profiled", device_type="cpu", core_api=1, probe="profiled_vendor:why_unavailable",
    platform="sglang_fl.sglang_adapter.cpu_platform.CpuPlatform",
    impls=(OpImpl("silu_and_mul", BackendKind.FLAGOS, "flagos", "profiled_vendor:silu_and_mul"),),
    aten=AtenOffer(
        ops="profiled_vendor:ops", kernels="profiled_vendor:kernels",
        choices=(AtenChoice(("argmax",), True, "to be seen"),),
    ),
)
"""


_ENGINE = """
import os, sys
os.dup2(os.pipe()[0], 0)  # whose end would end it
sys.argv = ["engine", {folder!r}, str(os.open({pipe!r}, os.O_WRONLY))]
from sglang_fl.profiling.engine import main
main()
"""


def run_forked(environment: dict[str, str]) -> Callable[[Path, Callable[[str], None]], int]:
    """Return what runs the engine's process under these settings, forked with SGLang loaded."""

    def run(folder: Path, say: Callable[[str], None]) -> int:
        pipe = folder / "steps"
        os.mkfifo(pipe)
        command = ["python", "-c", _ENGINE.format(folder=str(folder), pipe=str(pipe))]
        with (folder / procedure.LOG).open("wb") as log:
            program = server_for(environment).start(command, log.fileno(), environment, ROOT)
        with pipe.open() as steps:
            for step in steps:
                say(step.rstrip("\n"))
        return program.wait()

    return run


def profiled(
    model: Path, folder: Path, environment: dict[str, str], patch: pytest.MonkeyPatch, *words: str
) -> dict[str, Any]:
    """Run the command, and return what it wrote as JSON."""
    patch.setattr(procedure, "run_process", run_forked(environment))
    files = ("--json-file", str(folder / "p.json"), "--html", str(folder / "p.html"))
    run = CliRunner().invoke(app, ["profile", "--model", str(model), *SMALL, *files, *CPU, *words])
    assert run.exit_code == 0, run.output[-5000:]
    assert re.search(r"^On ours in decode: \d+\.\d %", run.output, re.MULTILINE), run.output[-3000:]
    assert re.findall(r"<h2>(\w+)", (folder / "p.html").read_text()) == ["Decode", "Prefill"]
    data = json.loads((folder / "p.json").read_text())
    assert_fits("profile", data)
    return data


@pytest.mark.parametrize("name", [pytest.param(name, marks=NEEDS.get(name, ())) for name in RUNS])
def test_each_step_is_told_by_who_ran_it(name: str, environment_of, tmp_path: Path, monkeypatch):
    backend, ours, left = RUNS[name]
    make_model(BY_NAME[name], tmp_path / "model")
    words = ("--attention-backend", backend)
    data = profiled(tmp_path / "model", tmp_path, environment_of({}), monkeypatch, *words)
    decode, prefill = data["phases"]
    assert (decode["phase"], decode["requests"]) == ("decode", 2)
    # Where SGLang overlaps batches on a CPU too, one step may run ahead.
    assert decode["steps"] in ((3,) if RELEASE in PLAIN_PREFILL else (3, 4))
    assert (prefill["phase"], prefill["steps"] * prefill["tokens"]) == ("prefill", 48)
    assert (data["clock"], data["ranks"], data["outside_us"]) == ("host", 1, 0)
    named = {(piece["who"], piece["what"]) for piece in decode["pieces"]}
    assert {("reference", op) for op in ours} <= named
    assert {("sglang", what) for what in left} <= named
    for phase in data["phases"]:
        assert sum(piece["share"] for piece in phase["pieces"]) == pytest.approx(1, abs=1e-4)
        assert {piece["who"] for piece in phase["pieces"]} <= {who.value for who in Who}
        assert 0 < phase["ours"] < 1
    assert processes_with(str(tmp_path / "model")) == []


def test_kernels_of_a_vendor_are_told_by_their_kind_in_both_layers(
    tiny_model: Path, environment_of, tmp_path: Path, monkeypatch
):
    package = install_vendor(tmp_path / "package", "profiled", VENDOR)
    settings = {"PYTHONPATH": str(package), "SGLANG_FL_PLATFORM": "profiled", "USE_FLAGGEMS": "1"}
    words = ("--attention-backend", "torch_native")
    data = profiled(tiny_model, tmp_path, environment_of(settings), monkeypatch, *words)
    named = {(piece["who"], piece["what"]) for piece in data["phases"][0]["pieces"]}
    assert {("flagos", "silu_and_mul"), ("flagos", "aten::argmax"), ("reference", "rms_norm")} <= named


def test_with_all_layers_off_it_is_all_sglangs(tiny_model: Path, environment_of, tmp_path: Path, monkeypatch):
    environment = environment_of({"SGLANG_FL_OOT_ENABLED": "0", "USE_FLAGGEMS": "0"})
    data = profiled(tiny_model, tmp_path, environment, monkeypatch, "--load-format", "dummy")
    assert [phase["ours"] for phase in data["phases"]] == [0, 0]
    named = {(piece["who"], piece["what"]) for piece in data["phases"][0]["pieces"]}
    assert ("sglang", "RMSNorm") in named
    assert "reference" not in {who for who, _ in named}


def test_a_model_that_sglang_does_not_know_is_code_2(environment_of, tmp_path: Path, monkeypatch):
    model = tmp_path / "model"
    model.mkdir()
    config = {"architectures": ["NoSuchModel"], "model_type": "qwen2", "vocab_size": 8}
    (model / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(procedure, "run_process", run_forked(environment_of({})))
    run = CliRunner().invoke(app, ["profile", "--model", str(model), *CPU])
    assert run.exit_code == 2, run.output[-3000:]
    assert "sglang-fl: the engine could not be measured: " in run.output


def test_ctrl_c_leaves_no_process(tiny_model: Path, environment_of, tmp_path: Path):
    with (tmp_path / "output.log").open("wb") as output:
        process = subprocess.Popen(  # really started: signals find the processes that a user has
            [*COMMAND, "--model", str(tiny_model), *CPU, "--decode", "300", "--prefill", "8"],
            env=environment_of({"PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)}),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell that runs the tests in the background has them ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    deadline = time.monotonic() + 200
    while "unmeasured" not in (tmp_path / "output.log").read_text(errors="replace"):
        assert process.poll() is None, (tmp_path / "output.log").read_text()
        assert time.monotonic() < deadline, (tmp_path / "output.log").read_text()
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(60) == 130
    deadline = time.monotonic() + 30  # the tracker of shared memory ends by itself
    while processes_with(str(tiny_model)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_with(str(tiny_model)) == []
    assert list(tmp_path.glob("sglang-fl-profile-*")) == []

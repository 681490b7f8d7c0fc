"""``sglang-fl tune`` on the real engine: a slow and a wrong kernel are not chosen, a fast exact one is."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sglang_fl.cli import app
from sglang_fl.startup import configure
from sglang_fl.tune import engines
from tests.engine import preloaded_engines
from tests.engine.fake_vendor import install_vendor
from tests.programs import processes_with

pytestmark = pytest.mark.timeout(400)

#: Runs by default on a kernel that sleeps; a wrong one and a fast one are there.
VENDOR = """
import time
from torch.nn.functional import silu

from sglang_fl.ops import OPS
from sglang_fl.vendor import BackendKind, OpImpl, Vendor

def why() -> None:
    return None

def slow(x):
    time.sleep(0.03)
    return OPS["silu_and_mul"].reference(x)

def wrong(x):
    return OPS["silu_and_mul"].reference(x) * 1.1

def fast(x):
    gate, up = x.chunk(2, -1)
    return silu(gate) * up

KERNELS = {"": "slow", ".wrong": "wrong", ".fast": "fast"}
VENDOR = Vendor(
    "tuned", device_type="cpu", core_api=1, probe="tuned_vendor:why",
    platform="sglang_fl.sglang_adapter.cpu_platform.CpuPlatform",
    impls=tuple(
        OpImpl("silu_and_mul", BackendKind.VENDOR, f"vendor.tuned{suffix}", f"tuned_vendor:{name}")
        for suffix, name in KERNELS.items()
    ),
)
"""
LAUNCH = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--grammar-backend", "none", "--skip-tokenizer-init", "--max-total-tokens", "2048"),
    *("--dtype", "float32", "--log-level", "error", "--sleep-on-idle"),
)


@pytest.fixture
def settings(tmp_path: Path, environment_of, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment in which the planted vendor is chosen; also that of this process."""
    site = install_vendor(tmp_path / "site", "tuned", VENDOR)
    chosen = {"PYTHONPATH": str(site), "SGLANG_FL_PLATFORM": "tuned"}
    for name, text in environment_of(chosen).items():
        monkeypatch.setenv(name, text)
    monkeypatch.syspath_prepend(site)
    configure.cache_clear()
    own = signal.getsignal(signal.SIGTERM)
    yield chosen
    signal.signal(signal.SIGTERM, own)
    configure.cache_clear()


def test_of_a_slow_a_wrong_and_a_fast_kernel_the_fast_one_is_chosen_and_serves(
    settings, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_offline
):
    monkeypatch.setattr(engines, "start", preloaded_engines.start)
    out, folder = tmp_path / "tuned.yaml", tmp_path / "state"
    ours = ("--rounds", "1", "--kernels-only", "--out", str(out), "--folder", str(folder))
    done = CliRunner().invoke(app, ["tune", "--model", str(tiny_model), *ours, *LAUNCH])
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    written = " ".join(out.read_text().replace("#", " ").split())
    assert 'silu_and_mul: "impl:vendor.tuned.fast|sglang"' in written
    assert "vendor.tuned.wrong: wrong: silu_and_mul in a recorded call: result 0: " in written
    assert "In the engine this choice has decode " in written
    log = tmp_path / "dispatch.log"
    run = run_offline({**settings, "SGLANG_FL_CONFIG": str(out), "SGLANG_FL_DISPATCH_LOG": str(log)})
    assert run.code == 0, run.output[-3000:]
    assert "[OOT-DISPATCH] SiluAndMul → vendor(vendor.tuned.fast)" in log.read_text()
    assert processes_with(f"serve(['--model-path', '{tiny_model}'") == []


def test_ctrl_c_leaves_no_process_and_what_was_measured(settings, tiny_model: Path, tmp_path: Path):
    log, out = tmp_path / "output.log", tmp_path / "tuned.yaml"
    command = [sys.executable, str(Path(sys.executable).with_name("sglang-fl")), "tune"]
    command += ["--model", str(tiny_model), "--out", str(out), "--folder", str(tmp_path / "state"), *LAUNCH]
    with log.open("wb") as output:
        process = subprocess.Popen(  # really started: signals find the processes that a user has
            command,
            env=dict(os.environ),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell that runs the tests in the background has them ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    deadline = time.monotonic() + 120
    while not processes_with(f"serve(['--model-path', '{tiny_model}'"):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130, log.read_text()
    assert processes_with(f"serve(['--model-path', '{tiny_model}'") == []
    assert not out.exists()

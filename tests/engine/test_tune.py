"""``sglang-fl tune`` on the real engine: of ops and of ATen ops the fast exact kernel is chosen, no other."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
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
#: Has ATen kernels: a fast one, a wrong one, a slow one, and one that ends its process. PyTorch's own beside
#: the fast one takes 100 ms: from its first norm on the model calls it wherever it calls ``argmax``.
ATEN_VENDOR = """
import os
import time

import torch

from sglang_fl.ops import OPS
from sglang_fl.vendor import AtenKernel, AtenOffer, AtenOp, BackendKind, OpImpl, Vendor

OWN = torch.argmax
NUMBERS = torch.linspace(-4, 4, 800_000)

def why() -> None:
    return None

def norm(x, weight, eps, residual=None):
    torch.argmax = busy
    return OPS["rms_norm"].reference(x, weight, eps, residual)

def busy(*args, **kwargs):
    torch.logcumsumexp(NUMBERS, 0)
    return OWN(*args, **kwargs)

def fast(x, dim):
    top = x.max()
    return (x - top).exp().cumsum(dim).log_().add_(top)

def wrong(x, dim=None, keepdim=False):
    return torch.argmin(x, dim, keepdim)

def slow(weight, indices, padding_idx=-1, scale_grad_by_freq=False, sparse=False):
    time.sleep(0.002)
    return torch.index_select(weight, 0, indices.reshape(-1)).reshape(*indices.shape, -1)

def ends(x, y, *, alpha=1):
    os.abort()

KERNELS = (
    AtenKernel("logcumsumexp", "logcumsumexp", fast),
    AtenKernel("argmax", "argmax", wrong),
    AtenKernel("embedding", "embedding", slow),
    AtenKernel("add.Tensor", "add", ends),
)

def ops():
    return [AtenOp(kernel.overload, kernel.name) for kernel in KERNELS]

def kernels():
    return KERNELS

VENDOR = Vendor(
    "tuned_aten", device_type="cpu", core_api=1, probe="tuned_aten_vendor:why",
    platform="sglang_fl.sglang_adapter.cpu_platform.CpuPlatform",
    impls=(OpImpl("rms_norm", BackendKind.VENDOR, "vendor.tuned_aten", "tuned_aten_vendor:norm"),),
    aten=AtenOffer("tuned_aten_vendor:ops", "tuned_aten_vendor:kernels"),
)
"""
LAUNCH = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--grammar-backend", "none", "--skip-tokenizer-init", "--max-total-tokens", "2048"),
    *("--dtype", "float32", "--log-level", "error", "--sleep-on-idle"),
)


Choose = Callable[[str, str], dict[str, str]]


@pytest.fixture
def choose(tmp_path: Path, environment_of, monkeypatch: pytest.MonkeyPatch) -> Iterator[Choose]:
    """``choose(name, source)`` plants a vendor and returns the environment that chooses it, also here."""
    own = signal.getsignal(signal.SIGTERM)

    def choose(name: str, source: str) -> dict[str, str]:
        site = install_vendor(tmp_path / "site", name, source)
        chosen = {"PYTHONPATH": str(site), "SGLANG_FL_PLATFORM": name}
        for variable, text in environment_of(chosen).items():
            monkeypatch.setenv(variable, text)
        monkeypatch.syspath_prepend(site)
        configure.cache_clear()
        return chosen

    yield choose
    signal.signal(signal.SIGTERM, own)
    configure.cache_clear()


@pytest.fixture
def settings(choose: Choose) -> dict[str, str]:
    """The environment in which the vendor of ops is chosen."""
    return choose("tuned", VENDOR)


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


def test_of_aten_ops_the_fast_exact_one_is_listed_and_the_record_shows_it(
    choose: Choose, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_offline
):
    settings = choose("tuned_aten", ATEN_VENDOR)
    monkeypatch.setattr(engines, "start", preloaded_engines.start)
    out, folder = tmp_path / "tuned.yaml", tmp_path / "state"
    named = (
        word for name in ("logcumsumexp", "argmax", "embedding", "add") for word in ("--op", f"aten::{name}")
    )
    ours = ("--rounds", "1", *named, "--kernels-only", "--out", str(out), "--folder", str(folder))
    done = CliRunner().invoke(app, ["tune", "--model", str(tiny_model), *ours, *LAUNCH])
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    assert yaml.safe_load(out.read_text()) == {
        "use_flaggems": "1",
        "flagos_whitelist": ["aten::logcumsumexp.default"],
    }, out.read_text()
    told = " ".join(out.read_text().replace("#", " ").split())
    assert "In the engine this choice has decode " in told
    assert "aten::argmax.default on pytorch: the kernel is not exact; kernel: wrong: aten::argmax: " in told
    assert re.search(r"aten::embedding.default on pytorch: 0\.\d+ ± \S+ times the speed of PyTorch's", told)
    assert "aten::add.Tensor on pytorch: the kernel is not exact; kernel: ends its process: SIGABRT" in told
    log = tmp_path / "aten.log"
    record = {"SGLANG_FLAGGEMS_RECORD": "1", "SGLANG_FLAGGEMS_LOG_PATH": str(log)}
    run = run_offline({**settings, **record, "SGLANG_FL_CONFIG": str(out)})
    assert run.code == 0, run.output[-3000:]
    lines = set(log.read_text().splitlines())
    assert lines == {"[DEBUG] tuned_aten_vendor.logcumsumexp: GEMS LOGCUMSUMEXP aten::logcumsumexp"}


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

"""Triton kernels that are compiled or tuned at the wrong moment, by the real Triton."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sglang_fl.logs.compile_monitor import CompileMonitor

triton = pytest.importorskip("triton")
from triton import knobs  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.autotuner import Autotuner  # noqa: E402

pytestmark = pytest.mark.usefixtures("forked")

KERNEL = """
import triton
import triton.language as tl


@triton.jit
def copy_kernel(x, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + offsets, tl.load(x + offsets, mask=offsets < n), mask=offsets < n)
"""
SIGNATURE = {"x": "*bf16", "out": "*bf16", "n": "i32", "BLOCK": "constexpr"}


@pytest.fixture
def compile_kernel(
    write_module: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[int], str]:
    """``compile_kernel(block)`` compiles for a GPU that need not be there; returns the module's name."""
    monkeypatch.setattr(knobs.cache, "dir", str(tmp_path / "cache"))
    name = write_module(KERNEL)

    def compile_kernel(block: int) -> str:
        module = __import__(name)
        source = ASTSource(module.copy_kernel, SIGNATURE, constexprs={(3,): block})
        triton.compile(source, target=GPUTarget("cuda", 90, 32))
        return name

    return compile_kernel


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> CompileMonitor:
    """A monitor that watches until the end of the test."""
    monkeypatch.setattr(knobs.compilation, "listener", None)
    monkeypatch.setattr(Autotuner, "_bench", Autotuner._bench)
    monitor = CompileMonitor("cpu")
    monitor.watch()
    return monitor


def test_kernel_that_is_compiled_under_traffic_is_told_once_with_what_for(
    monitor: CompileMonitor, compile_kernel: Callable[[int], str], caplog: pytest.LogCaptureFixture
):
    compile_kernel(64)
    assert caplog.messages == []  # the server starts
    monitor.expect_none()
    module = compile_kernel(128)
    compile_kernel(256)
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert warning.getMessage() == (
        f"the Triton kernel {module}.copy_kernel is compiled under traffic, "
        "for x: *bf16, out: *bf16, n: i32, BLOCK=128"
    )


def test_kernel_from_the_cache_is_not_told(
    monitor: CompileMonitor, compile_kernel: Callable[[int], str], caplog: pytest.LogCaptureFixture
):
    compile_kernel(64)
    monitor.expect_none()
    compile_kernel(64)
    assert caplog.messages == []


def test_who_listened_before_still_hears(
    monitor: CompileMonitor, compile_kernel: Callable[[int], str], caplog: pytest.LogCaptureFixture
):
    heard = []
    knobs.compilation.listener = lambda **told: heard.append(told["src"].name)
    monitor.watch()
    monitor.expect_none()
    compile_kernel(64)
    assert heard == ["copy_kernel"]
    assert len(caplog.messages) == 1


TUNED = """
import triton
import triton.language as tl
from triton import knobs

knobs.runtime.interpret = True


@triton.autotune(
    configs=[triton.Config({"BLOCK": 64}), triton.Config({"BLOCK": 128})],
    key=["n"],
    do_bench=lambda call, quantiles: [1.0, 1.0, 1.0],
)
@triton.jit
def tuned_copy(x, out, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + offsets, tl.load(x + offsets, mask=offsets < n), mask=offsets < n)
"""


def test_kernel_that_is_tuned_under_traffic_is_told_with_its_shapes(
    monitor: CompileMonitor,
    write_module: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(knobs.runtime, "interpret", knobs.runtime.interpret)
    name = write_module(TUNED)
    kernel = __import__(name).tuned_copy
    monitor.expect_none()
    x, out = torch.ones(2, 50), torch.zeros(2, 50)
    kernel[(2,)](x, out, 100)
    kernel[(2,)](x, out, 100)
    assert torch.equal(out, x)
    (message,) = caplog.messages
    assert message == (
        f"the Triton kernel {name}.tuned_copy is tuned under traffic, "
        "for x: float32 (2, 50), out: float32 (2, 50), n=100"
    )


#: A device of PyTorch's whose streams say that they are being captured.
CAPTURING = """
import sys, types, torch, logging
from triton import knobs
from sglang_fl.logs.compile_monitor import CompileMonitor

torch.utils.rename_privateuse1_backend("toy")
is_capturing = sys.argv[1] == "1"
torch._register_device_module("toy", types.SimpleNamespace(is_current_stream_capturing=lambda: is_capturing))
logging.basicConfig(format="%(message)s")
CompileMonitor("toy").watch()
knobs.compilation.listener(src=types.SimpleNamespace(name="k"), cache_hit=False, times=None)
"""


TOLD = "the Triton kernel k is compiled while a graph is captured, for an unknown specialization\n"


@pytest.mark.parametrize(("capturing", "told"), [("1", TOLD), ("0", "")])
def test_capture_is_disturbed_before_the_server_serves(capturing: str, told: str):
    done = subprocess.run(
        [sys.executable, "-c", CAPTURING, capturing], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == told


def test_without_triton_nothing_is_watched(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    CompileMonitor("cpu").watch()

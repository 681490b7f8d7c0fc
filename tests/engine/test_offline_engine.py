"""``sgl.Engine`` on a CPU: off is off, and kernels that fail in their first call."""

from pathlib import Path

import pytest

from tests.engine.fake_vendor import install_vendor

pytestmark = pytest.mark.timeout(400)

#: A chip whose probe says yes; its norm overwrites half of what it may write, then raises.
BURNING = """
from sglang_fl.vendor import BackendKind, OpImpl, Vendor

VENDOR = Vendor(
    "burning",
    device_type="cpu",
    core_api=1,
    probe="burning_vendor:why_unavailable",
    platform="sglang_fl.sglang_adapter.cpu_platform.CpuPlatform",
    impls=(OpImpl("rms_norm", BackendKind.VENDOR, "vendor.burning", "burning_vendor:rms_norm"),),
)


def why_unavailable():
    return None


def rms_norm(x, weight, eps, residual=None):
    if residual is not None:
        x[: len(x) // 2 + 1] = float("nan")
        residual.zero_()
    raise RuntimeError("the chip has caught fire")
"""


@pytest.fixture(scope="module")
def references(run_offline):
    """The plugin as it is on a CPU."""
    run = run_offline({})
    assert run.code == 0, run.output[-3000:]
    return run.result


@pytest.fixture(scope="module")
def burning(tmp_path_factory) -> str:
    """A folder for PYTHONPATH that brings the burning chip."""
    return str(install_vendor(tmp_path_factory.mktemp("burning"), "burning", BURNING))


def test_off_is_bit_equal_to_no_plugin_and_writes_no_log(run_offline, no_hook, tmp_path: Path):
    log = tmp_path / "dispatch.log"
    off = run_offline({"SGLANG_FL_OOT_ENABLED": "0", "SGLANG_FL_DISPATCH_LOG": str(log)})
    assert off.result == no_hook
    assert not log.exists()


def test_sglang_preferred_is_bit_equal_to_no_plugin_and_says_so(run_offline, no_hook, tmp_path: Path):
    log = tmp_path / "dispatch.log"
    run = run_offline({"SGLANG_FL_PREFER": "sglang", "SGLANG_FL_DISPATCH_LOG": str(log)})
    assert run.result == no_hook
    assert set(log.read_text().splitlines()) == {
        "[OOT-DISPATCH] RMSNorm → sglang(native)",
        "[OOT-DISPATCH] RadixAttention → sglang(torch_native)",
        "[OOT-DISPATCH] RotaryEmbedding → sglang(native)",
        "[OOT-DISPATCH] SiluAndMul → sglang(native)",
    }


def test_references_generate_what_sglang_generates(references, no_hook):
    assert references["tokens"] == no_hook["tokens"]
    # bfloat16 rounds at other places, so the log-probabilities differ, but by little.
    pairs = zip(references["logprobs"], no_hook["logprobs"], strict=True)
    assert 0 < max(abs(ours - theirs) for ours, theirs in pairs) < 0.1


def test_a_failing_kernel_is_replaced_on_unharmed_arguments(run_offline, references, burning, tmp_path: Path):
    log = tmp_path / "dispatch.log"
    run = run_offline({"PYTHONPATH": burning, "SGLANG_FL_DISPATCH_LOG": str(log)})
    assert run.result == references
    warning = "RMSNorm: vendor.burning of rms_norm failed in its first call and is replaced"
    assert run.output.count(f"{warning}: RuntimeError: the chip has caught fire") == 1
    lines = log.read_text().splitlines()
    assert "[OOT-DISPATCH] RMSNorm → reference(reference)" in lines
    assert not [line for line in lines if "burning" in line]


def test_strict_raises_the_error_of_a_failing_kernel(run_offline, burning):
    run = run_offline({"PYTHONPATH": burning, "SGLANG_FL_STRICT": "1"})
    assert run.code != 0
    assert run.result is None
    assert "RuntimeError: the chip has caught fire" in run.output

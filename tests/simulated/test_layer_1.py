"""Layer 1 in SGLang's real engine on the simulated chip of this session: ATen kernels for its dispatch key.

The chip keeps a list of its own of what it is asked for: an op that a kernel of ours replaces is not on it.
"""

from pathlib import Path

import pytest

from tests.engine.fake_vendor import install_vendor
from tests.engine.judge import assert_agrees
from tests.simulated.judge import Judged, Setup, judge

pytestmark = pytest.mark.timeout(300)

MODULE = Path(__file__).with_name("layer_1_vendor.py")
LAYERS = dict.fromkeys(("RMSNorm", "RotaryEmbedding", "SiluAndMul"), "vendor(vendor.measured)")
#: What the record says of each kernel, and what the chip is asked for where the kernel does not run.
RECORDED = {
    "add": "add aten::add.Tensor",
    "softmax": "softmax aten::_softmax",
    "log_softmax": "log_softmax aten::_log_softmax",
    "argmax": "argmax aten::argmax",
}
ASKED = {
    "softmax": "aten::_softmax.out",
    "log_softmax": "aten::_log_softmax.out",
    "argmax": "aten::argmax.out",
}


@pytest.fixture
def run(vendor, simulating, tmp_path: Path):
    """``run(settings)`` returns what the engine did, and the names on the record of ATen ops."""
    package = install_vendor(tmp_path / "measured", "measured", MODULE.read_text())
    record = tmp_path / "aten.log"

    def run(settings: dict[str, str]) -> tuple[Judged, set[str]]:
        fixed = {
            "PYTHONPATH": str(package),
            "MEASURED_BASE": vendor.name,
            "SGLANG_FL_PLATFORM": "measured",
            "SGLANG_FL_STRICT": "1",
            "SGLANG_FLAGGEMS_RECORD": "1",
            "SGLANG_FLAGGEMS_LOG_PATH": str(record),
        }
        folder = tmp_path / "run"
        folder.mkdir()
        setup = Setup("Qwen2", LAYERS, settings)
        done = judge(setup, folder, lambda given: simulating(vendor.name, {**fixed, **given}))
        lines = set(record.read_text().splitlines()) if record.exists() else set()
        names = {name for name, line in RECORDED.items() if line in {strip(text) for text in lines}}
        assert len(names) == len(lines), lines
        assert_agrees(done.differences["prompts"])
        assert_agrees(done.differences["followers"])
        runs = {**LAYERS, "RadixAttention": "sglang(torch_native)"}
        assert done.dispatched == {f"[OOT-DISPATCH] {name} → {ran}" for name, ran in runs.items()}
        return done, names

    return run


def strip(line: str) -> str:
    """Return a kernel's name and its ATen op: ``[DEBUG] measured_vendor.add: GEMS ADD aten::add.Tensor``."""
    origin, _, rest = line.removeprefix("[DEBUG] measured_vendor.").partition(": GEMS ")
    return f"{origin} {rest.partition(' ')[2]}"


@pytest.mark.parametrize(
    ("settings", "replaced"),
    [
        ({}, {"add", "softmax", "log_softmax", "argmax"}),
        ({"SGLANG_FL_FLAGOS_WHITELIST": "aten::_softmax,argmax,cumsum"}, {"softmax", "argmax"}),
    ],
    ids=["measured", "white-list"],
)
def test_exactly_these_ops_run_on_kernels_and_are_recorded(run, settings, replaced):
    done, names = run(settings)
    assert names == replaced
    assert {name for name, asked in ASKED.items() if asked not in done.asked} == replaced & ASKED.keys()

"""The kit's score: of kernels that are wrong in one way each it must catch every one, in its aspect."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sglang_fl.conformance import ASPECTS, Verdict, verify_impl
from sglang_fl.ops import OPS
from sglang_fl.vendor import BackendKind, OpImpl

SOURCE = Path(__file__).with_name("wrong_kernels.py").read_text()
WRONG = [
    line.removeprefix("def ").partition("(")[0]
    for line in SOURCE.splitlines()
    if line.startswith("def ") and "__" in line
]
#: Those that keep every case of their op; only another aspect tells.
EDGE = {"rotary_embedding__positions_in_float32", "mrope__positions_in_float32"}
EDGE |= {"rotary_embedding__row_offsets_in_32_bits", "silu_and_mul__offsets_in_32_bits"}
EDGE |= {f"silu_and_mul__{what}" for what in ("hides_a_nan", "spreads_a_nan", "clamps_infinity")}
REPEAT = {"silu_and_mul__one_buffer_for_all_calls", "silu_and_mul__another_last_bit_each_time"}


@pytest.fixture
def verdict_of(write_module: Callable[[str], str]) -> Callable[..., Verdict]:
    """Verify a function of the module of wrong kernels."""
    module = write_module(SOURCE)

    def verify(name: str, *aspects: str) -> Verdict:
        impl = OpImpl(name.partition("__")[0], BackendKind.FLAGOS, "flagos", f"{module}:{name}")
        return verify_impl(impl, "cpu", aspects or ASPECTS)

    return verify


@pytest.mark.parametrize("name", WRONG)
def test_wrong_kernel_is_caught_in_its_aspect(verdict_of: Callable[..., Verdict], name: str):
    aspect = "edges" if name in EDGE else "repeat" if name in REPEAT else "cases"
    verdict = verdict_of(name, aspect)
    assert verdict.state == "fails", f"{name} passes {aspect}"
    if aspect != "cases":
        assert verdict_of(name, "cases").state == "passes"


def test_there_are_wrong_kernels_of_every_sort():
    print(f"conformance kit: {len(WRONG)} wrong kernels of {len({n.partition('__')[0] for n in WRONG})} ops")
    assert len(WRONG) == len(set(WRONG))
    assert len(WRONG) >= 45
    assert set(WRONG) > EDGE | REPEAT


@pytest.mark.parametrize("op", [name for name in OPS if name != "chunk_gated_delta_rule"])
def test_right_kernel_passes_in_all_aspects(op: str):
    verdict = verify_impl(OpImpl(op, BackendKind.REFERENCE, "reference", OPS[op].target), "cpu", ASPECTS[1:])
    assert verdict.state == "passes", verdict.faults
    assert verdict.not_checked == ["graph: a CPU captures no graphs"]
    assert verdict.host_us is not None


def test_implementation_whose_library_is_missing_is_not_checked():
    impl = OpImpl("rms_norm", BackendKind.FLAGOS, "flagos", "no_such:rms_norm", requires=("no_such",))
    verdict = verify_impl(impl, "cpu")
    assert (verdict.state, verdict.not_checked) == ("not checked", ["no_such is not installed"])

"""The kit's score: of kernels that are wrong in one way each it must catch every one, in its aspect."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_fl.conformance import ASPECTS, Verdict, check_case, verify_impl
from sglang_fl.conformance.check import DTYPES
from sglang_fl.conformance.simulated import SimulatedChip
from sglang_fl.ops import OPS, Outputs
from sglang_fl.vendor import BackendKind, OpImpl, load_target
from tests.ops.subject import like, subject_of

pytestmark = pytest.mark.timeout(300)

CHIP = SimulatedChip("toychip", "toyccl")
#: The wrong kernels that are to raise. Another one that does, because an argument has another name now, shows
#: nothing.
RAISING = {
    "silu_and_mul-another_signature",
    "silu_and_mul-fails_for_nothing",
    "silu_and_mul-raises",
    "silu_and_mul-takes_two_axes_only",
    "rotary_embedding-takes_int64_positions_only",
}


def wrong(*aspects: str) -> Iterator[object]:
    """Yield the wrong kernels: op, function, aspect. Of an op without any ``test_op_is_described`` tells."""
    for op in OPS:
        try:
            subject = subject_of(op)
        except LookupError:
            continue
        for aspect, kernels in subject.wrong.items():
            if aspect in aspects:
                for kernel in kernels:
                    yield pytest.param(op, kernel.__name__, aspect, id=f"{op}-{kernel.__name__}")


def verdict_of(op: str, kernel: str, device: str, *aspects: str) -> Verdict:
    impl = OpImpl(op, BackendKind.FLAGOS, "flagos", f"tests.ops.{op}:{kernel}")
    return verify_impl(impl, device, aspects)


def faults_of(op: str, kernel: str, aspect: str) -> Iterator[str]:
    """Yield what the kit finds in an aspect; in cases as it finds it, since the first fault is enough."""
    if aspect == "cases":
        function = load_target(f"tests.ops.{op}:{kernel}")
        for dtype, case in itertools.product(DTYPES, OPS[op].cases):
            yield from check_case(OPS[op], function, case, dtype, "cpu") or ()
    yield from verdict_of(op, kernel, "cpu", aspect).faults[aspect]


@pytest.mark.parametrize(("op", "kernel", "aspect"), wrong("cases", "edges", "repeat"))
def test_wrong_kernel_is_caught_in_its_aspect(op: str, kernel: str, aspect: str):
    raises = f"{op}-{kernel}" in RAISING
    assert any((": raised " in fault) == raises for fault in faults_of(op, kernel, aspect)), (
        f"it passes {aspect}"
    )
    if aspect != "cases":
        assert verdict_of(op, kernel, "cpu", "cases").state == "passes"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_a_result_that_is_an_eighth_too_large_is_seen_in_each_dtype(op: str, dtype: torch.dtype):
    """What a bound is counted in must not be so large that any result would do."""
    known, seen = OPS[op], 0

    @like(known.reference)
    def too_large(**given: Any) -> Outputs:
        results = known.reference(**given)
        returned = (results,) if isinstance(results, Tensor) else results
        for result in returned:
            result[...] = (result * 1.125).to(result.dtype)
        return results

    for case in known.cases:
        seen += bool(check_case(known, too_large, case, dtype, "cpu"))
    assert seen > len(known.cases) / 2 or op == "kv_cache_write"  # which returns nothing


@pytest.mark.on_chip(CHIP)
@pytest.mark.parametrize(("op", "kernel", "aspect"), wrong("graph"))
def test_wrong_kernel_is_caught_in_a_graph_alone(op: str, kernel: str, aspect: str):
    verdict = verdict_of(op, kernel, CHIP.device_type, "cases", "repeat", aspect)
    assert verdict.faults[aspect], "it passes"
    assert not verdict.faults["cases"] + verdict.faults["repeat"]


@pytest.mark.on_chip(CHIP)
@pytest.mark.parametrize("op", ["rms_norm", "rotary_embedding", "topk_softmax"])
def test_right_kernel_is_captured_in_every_case_that_it_takes(op: str):
    verdict = verify_impl(OpImpl(op, BackendKind.FLAGOS, "flagos", OPS[op].target), "toychip", ("graph",))
    assert (verdict.state, verdict.not_checked) == ("passes", [])
    assert verdict.graphs >= len(OPS[op].cases) - 2  # of the empty ones some have no element at all


@pytest.mark.on_chip(CHIP)
def test_reference_that_cannot_be_captured_is_told_and_is_no_fault():
    def verdict(kind: BackendKind) -> Verdict:
        impl = OpImpl("fused_moe", kind, str(kind.value), OPS["fused_moe"].target)
        return verify_impl(impl, "toychip", ("graph",))

    told = verdict(BackendKind.REFERENCE)
    assert (told.state, told.graphs) == ("not checked", 0)
    assert "a result whose shape only the device knows" in told.not_checked[0]
    assert "a result whose shape only the device knows" in verdict(BackendKind.FLAGOS).faults["graph"][0]


def test_there_are_wrong_kernels_for_every_aspect():
    assert len(list(wrong(*ASPECTS))) >= 60
    assert all(list(wrong(aspect)) for aspect in ASPECTS)


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

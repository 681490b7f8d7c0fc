"""The kit's score at the edges of the contracts: kernels that keep every case and are wrong there."""

import functools
from collections.abc import Iterable, Iterator

import pytest

import wrong_kernels_edges as kernels
from sglang_fl.conformance import STRESS, check_case, verify_impl
from sglang_fl.conformance.check import DTYPES
from sglang_fl.conformance.edges import Edge, check_edge, edges
from sglang_fl.ops import OPS
from sglang_fl.vendor import BackendKind, OpImpl

WRONG = kernels.names()


#: Where a kernel is likely to be caught, by a word of its name.
LIKELY = {"nan": "not-finite", "far": "far", "expanded": "expanded", "overlapping": "overlapping"}


@functools.cache
def edges_of(op: str) -> tuple[Edge, ...]:
    """Return the edges of an op; it takes up to a second to find the cases that they are made of."""
    return tuple(edges(OPS[op]))


def faults_at_edges(name: str) -> Iterator[str]:
    """Yield what the kit finds at the edges of a wrong kernel's op, as it finds it."""
    op, kernel = OPS[name.partition("__")[0]], getattr(kernels, name)
    likely = tuple(sort for word, sort in LIKELY.items() if word in name.split("_"))
    for edge in sorted(edges_of(op.name), key=lambda edge: not edge.name.startswith(likely)):
        for dtype in edge.dtypes:
            answer = check_edge(op, kernel, edge, dtype, "cpu")
            yield from told(answer) if isinstance(answer, list) else ()


def faults_in_cases(name: str) -> list[str]:
    op, kernel = OPS[name.partition("__")[0]], getattr(kernels, name)
    calls = [(case, dtype) for case in op.cases for dtype in DTYPES]
    return [fault for call in calls for fault in told(check_case(op, kernel, *call, "cpu") or ())]


def told(faults: Iterable[str]) -> list[str]:
    """Return these faults, each of which is about what a kernel has computed: none is to raise.

    One that raises, as it does when an argument gets another name, would count as caught.
    """
    found = list(faults)
    assert not any(": raised " in fault for fault in found), found
    return found


@pytest.mark.parametrize("name", sorted(kernels.STRESS))
def test_wrong_kernel_is_caught_under_stress_alone(name: str):
    impl = OpImpl(name.partition("__")[0], BackendKind.FLAGOS, "flagos", f"wrong_kernels_edges:{name}")
    assert verify_impl(impl, "cpu").state == "passes"
    kernels._calls.clear()
    verdict = verify_impl(impl, "cpu", (STRESS,))
    assert "of 100 repeats number 59 gives other bits" in verdict.faults["stress"][0]


def test_a_right_kernel_stands_the_stress():
    impl = OpImpl("rms_norm", BackendKind.REFERENCE, "reference", OPS["rms_norm"].target)
    assert verify_impl(impl, "cpu", (STRESS,)).faults == {"stress": []}


@pytest.mark.parametrize("name", [name for name in WRONG if name not in kernels.STRESS])
def test_wrong_kernel_is_caught_at_its_edge(name: str):
    found = faults_in_cases(name) if name in kernels.CASES else next(faults_at_edges(name), None)
    assert found, f"{name} passes"


@pytest.mark.parametrize("name", sorted({*WRONG} - kernels.CASES - kernels.STRESS - kernels.FOR_EVERY_OP))
def test_wrong_kernel_keeps_the_cases(name: str):
    assert faults_in_cases(name) == []


def test_there_are_wrong_kernels_of_every_op():
    assert len(WRONG) == len(set(WRONG)) >= 90
    assert {name.partition("__")[0] for name in WRONG} == set(OPS)
    assert set(WRONG) > kernels.CASES


@pytest.mark.parametrize("op", OPS.values(), ids=str)
def test_every_op_has_every_sort_of_edge(op):
    names = [edge.name for edge in edges_of(op.name)]
    assert len(names) == len(set(names))
    assert {"later-calls", "tiny-rows"} <= set(names)
    for sort in ("far", "not-finite", "expanded", "overlapping"):
        assert any(name.startswith(f"{sort}-") for name in names), sort

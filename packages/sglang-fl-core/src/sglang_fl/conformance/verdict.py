"""All that the kit checks of one implementation, and what came of it."""

import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sglang_fl.conformance.call import title
from sglang_fl.conformance.check import DTYPES, check_impl
from sglang_fl.conformance.edges import check_edge, edges
from sglang_fl.conformance.graph import graph_faults, why_no_graph
from sglang_fl.conformance.repeat import host_microseconds, repeat_faults
from sglang_fl.conformance.stress import stress_faults
from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import OPS, Case, Kernel, Op, lacking
from sglang_fl.vendor import BackendKind, OpImpl, is_installed, load_target

__all__ = ["ASPECTS", "STRESS", "Verdict", "verify_impl"]

#: What is looked at: the op's cases; calls at the edge of its contract; the same call twice; graphs.
ASPECTS = ("cases", "edges", "repeat", "graph")
#: Looked at where it is asked for: the same call a hundred times on a device that is not quiet.
STRESS = "stress"
#: What can be captured depends on the launch, which is the same for all dtypes; this one is served most.
GRAPH_DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Verdict:
    """What became of one implementation.

    Parameters
    ----------
    op, impl, target : which one
    faults : what is wrong, by aspect; an aspect without faults has an empty list
    not_checked : what could not be looked at, and why
    graphs : how many calls were captured in a graph and replayed
    digest : of the bits of all results; equal on two machines that compute the same
    host_us : time of a small call on the host in µs; None where none ran
    """

    op: str
    impl: str
    target: str
    faults: dict[str, list[str]] = field(default_factory=dict)
    not_checked: list[str] = field(default_factory=list)
    graphs: int = 0
    digest: str = ""
    host_us: float | None = None

    @property
    def state(self) -> str:
        """``passes``, ``fails`` or ``not checked``."""
        if any(self.faults.values()):
            return "fails"
        return "passes" if self.faults else "not checked"


def verify_impl(impl: OpImpl, device: str, aspects: tuple[str, ...] = ASPECTS) -> Verdict:
    """Check all of an implementation on a device; whatever its module or kernel raises is a fault.

    Parameters
    ----------
    impl : its target is imported here
    device : PyTorch's string, ``cuda``
    aspects : some of ``ASPECTS`` and ``STRESS``
    """
    missing = [module for module in impl.requires if not is_installed(module)]
    if missing:
        reason = f"{', '.join(missing)} is not installed"
        return Verdict(impl.op, str(impl), impl.target, not_checked=[reason])
    examination = _Examination(impl, device)
    faults = {aspect: examination.of(aspect) for aspect in (*ASPECTS, STRESS) if aspect in aspects}
    return Verdict(
        impl.op,
        str(impl),
        impl.target,
        {aspect: found for aspect, found in faults.items() if found is not None},
        examination.not_checked,
        examination.graphs,
        examination.digest,
        examination.host_us(),
    )


class _Examination:
    """One implementation on one device, aspect by aspect."""

    def __init__(self, impl: OpImpl, device: str) -> None:
        self._impl, self._device = impl, device
        self._at = ""  # what is looked at: begins the fault of a kernel that raises
        self.not_checked: list[str] = []
        self.graphs = 0
        self.digest = ""

    @property
    def _op(self) -> Op:
        return OPS[self._impl.op]

    def of(self, aspect: str) -> list[str] | None:
        """Return the faults in one aspect; None where it cannot be looked at."""
        look: Callable[[], Iterator[str] | None] = getattr(self, f"_{aspect}")
        faults: list[str] = []
        self._at = f"{self._op} {self._impl}"
        try:
            found = look()
            if found is None:
                return None
            for fault in found:
                faults.append(fault)
        except Exception as error:  # noqa: BLE001 - a foreign kernel raises anything; that is its fault
            faults.append(f"{self._at}: raised {type(error).__name__}: {error}")
        return faults

    def _kernel(self) -> Kernel:
        return load_target(self._impl.target)

    def _cases(self) -> Iterator[str]:
        yield from check_impl(self._impl, self._device)

    def _edges(self) -> Iterator[str]:
        kernel = self._kernel()
        for edge in edges(self._op):
            for dtype in edge.dtypes:
                answer = check_edge(self._op, kernel, edge, dtype, self._device)
                if isinstance(answer, str):
                    self.not_checked.append(answer)
                else:
                    yield from answer

    def _repeat(self) -> Iterator[str]:
        kernel, digest = self._kernel(), hashlib.sha256()
        for case, dtype in self._calls(*DTYPES):
            answer = repeat_faults(self._op, kernel, case, dtype, self._device)
            if answer is not None:
                digest.update(answer[1])
                yield from answer[0]
        self.digest = digest.hexdigest()[:16]

    def _stress(self) -> Iterator[str]:
        kernel = self._kernel()
        for case, dtype in self._calls(GRAPH_DTYPE):
            yield from stress_faults(self._op, kernel, case, dtype, self._device)

    def _graph(self) -> Iterator[str] | None:
        reason = why_no_graph(self._device)
        if reason is None and not self._op.captured:
            reason = f"no server captures {self._op}"
        if reason is None:
            faults = list(self._graph_faults())
            if faults or self.graphs:
                return iter(faults)
            reason = "no call was captured"
        self.not_checked.append(f"graph: {reason}")
        return None

    def _graph_faults(self) -> Iterator[str]:
        kernel = self._kernel()
        for case, dtype in self._calls(GRAPH_DTYPE):
            if not _elements(case.arguments(dtype)):
                continue
            answer = graph_faults(self._op, kernel, case, dtype, self._device)
            if isinstance(answer, list):
                self.graphs += 1
                yield from answer
            elif answer is not None and self._impl.kind is BackendKind.REFERENCE:
                self.not_checked.append(answer)  # it is there to be exact and readable
                return
            elif answer is not None:
                yield answer

    def _calls(self, *dtypes: torch.dtype) -> Iterator[tuple[Case, torch.dtype]]:
        for dtype in dtypes:
            for case in self._op.cases:
                self._at = title(self._op, case, dtype)
                yield case, dtype

    def host_us(self) -> float | None:
        """Return the host's time for the smallest call that the kernel takes, in µs."""
        try:
            kernel = self._kernel()
            for case in sorted(self._op.cases, key=lambda case: _size(case)):
                given = case.arguments(torch.bfloat16, self._device)
                if lacking(kernel, [name for name in self._op.options if name in given]):
                    continue
                try:
                    kernel(**given)
                except UnsupportedError:
                    continue
                return host_microseconds(functools.partial(kernel, **given), self._device)
        except Exception:  # noqa: BLE001, S110 - the same fault is reported above
            pass
        return None


def _elements(arguments: dict[str, Any]) -> int:
    return sum(value.numel() for value in arguments.values() if isinstance(value, Tensor))


def _size(case: Case) -> float:
    """Return the number of elements of a case's arguments; one with an empty argument comes last."""
    tensors = [v for v in case.arguments(torch.bfloat16).values() if isinstance(v, Tensor)]
    empty = any(tensor.numel() == 0 for tensor in tensors)
    return math.inf if empty else sum(tensor.numel() for tensor in tensors)

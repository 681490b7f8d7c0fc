"""Have an op's implementations judged and timed in fresh processes, and say of each how that ended."""

import json
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from sglang_fl.diagnostics.doctor.child import Child, last_line, run_python
from sglang_fl.tune.budget import Budget
from sglang_fl.tune.calls import RecordedCall
from sglang_fl.tune.decide import REFERENCE, RIGHT, Judged, Measured, Timed
from sglang_fl.tune.subject import Subject

__all__ = ["measure_op"]

#: As in ``op_bench``, which imports PyTorch.
ANSWER = "SGLANG_FL_TUNE "
#: Seconds for one process: kernels may be tuned in their first calls.
LONGEST = 600.0


def measure_op(subject: Subject, calls: Sequence[RecordedCall], budget: Budget, is_cuda: bool) -> Measured:
    """Judge all implementations of an op, and time those that are exact.

    Parameters
    ----------
    subject : the op
    calls : the recorded ones
    budget : what is left; a process that does not end within it is ended
    is_cuda : whether graphs can be tried
    """
    judged = _judge(subject, calls, budget)
    exact = {i: target for i, target in subject.targets.items() if judged[i].state == RIGHT}
    if is_cuda and subject.present != REFERENCE:
        # It is not made for graphs, and a capture that fails takes the others along.
        exact.pop(REFERENCE, None)
    if len(exact) < (1 if subject.present not in subject.targets else 2):
        return Measured(subject.op, subject.present, judged, calls=len(calls))
    timed, trouble = _time(subject.op, exact, calls, budget, is_cuda)
    if trouble and is_cuda:  # a failed capture spoils its process
        timed, trouble = _time(subject.op, exact, calls, budget, False)
    return Measured(subject.op, subject.present, judged, timed, trouble, len(calls))


def _judge(subject: Subject, calls: Sequence[RecordedCall], budget: Budget) -> dict[str, Judged]:
    judged: dict[str, Judged] = {}
    pending = dict(subject.targets)
    while pending:
        if not budget.left:
            return judged | {impl: Judged("not measured", "the minutes are over") for impl in pending}
        child = _run("judge", subject.op, pending, calls, "", budget)
        for said in _answers(child):
            judged[said["impl"]] = Judged(said["state"], said["text"])
            del pending[said["impl"]]
        if pending:  # the first of them has ended the process
            impl = next(iter(pending))
            judged[impl] = _how_it_ended(child, budget)
            del pending[impl]
    return {impl: judged[impl] for impl in subject.targets}


def _time(
    op: str, exact: dict[str, str], calls: Sequence[RecordedCall], budget: Budget, graphs: bool
) -> tuple[tuple[Timed, ...], str]:
    child = _run("time_calls", op, exact, calls, f", graphs={graphs}", budget)
    timed = tuple(Timed(calls[said["call"]].shapes, said["how"], said["times"]) for said in _answers(child))
    if len(timed) == len(calls):
        return timed, ""
    return (), f"its times could not be taken: {_how_it_ended(child, budget)}"


def _run(
    step: str, op: str, targets: dict[str, str], calls: Sequence[RecordedCall], more: str, budget: Budget
) -> Child:
    files = [str(call.path) for call in calls]
    code = f"from sglang_fl.tune.op_bench import {step}; {step}({op!r}, {targets!r}, {files!r}{more})"
    return run_python(code, min(LONGEST, max(1.0, budget.left)))


def _answers(child: Child) -> Iterator[dict[str, Any]]:
    for line in child.output.splitlines():
        if line.startswith(ANSWER):
            yield json.loads(line.removeprefix(ANSWER))


def _how_it_ended(child: Child, budget: Budget) -> Judged:
    if child.code is None:
        if not budget.left:
            return Judged("not measured", "the minutes are over")
        return Judged("hangs", f"not done after {LONGEST:g} s")
    if child.code < 0:
        return Judged("ends its process", signal.Signals(-child.code).name)
    return Judged("not measured", last_line(child.errors))

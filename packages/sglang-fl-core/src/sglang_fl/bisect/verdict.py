"""What a bisection has found, for people and for machines."""

import enum
from dataclasses import asdict, dataclass, field
from typing import Any

from sglang_fl.bisect.steps import Step

__all__ = ["ATTENTION", "Culprit", "Outcome", "Verdict"]

#: The name of the culprit where SGLang's attention is wrong, whichever backend runs it.
ATTENTION = "RadixAttention"


class Outcome(enum.IntEnum):
    """How a bisection ended; the value is the exit code."""

    NOTHING_FOUND = 0
    FOUND = 1
    SET_UP_BROKEN = 2
    CANNOT_DECIDE = 3


@dataclass(frozen=True)
class Culprit:
    """One guilty unit.

    Parameters
    ----------
    layer : 1 for an ATen op, 2 for a fused op
    name : ``rms_norm``, ``aten::mul.Tensor``, ``RadixAttention``
    implementation : its id and target, ``layer 1``, or the attention backend: ``sglang(fa3)``
    where : the first layer of the model in which a call of it was wrong; where no call was wrong by itself,
        a layer whose kernel alone makes the numbers differ, or empty
    what : the error of that call, or how the model's numbers differ
    dtype, shapes : of that call
    ranks : the ranks on which a call was wrong, where that is not all of them
    exclude : the variable that leaves it out, or the argument that chooses another
    inputs : file with the call's arguments, in the folder of the report
    """

    layer: int
    name: str
    implementation: str = ""
    where: str = ""
    what: str = ""
    dtype: str = ""
    shapes: str = ""
    ranks: str = ""
    exclude: str = ""
    inputs: str = ""


@dataclass(frozen=True)
class Verdict:
    """The end of a bisection.

    Parameters
    ----------
    outcome : see ``Outcome``
    summary : one sentence
    culprits : none, one, or several that fail only together
    numbers : noise, threshold, deviation, passes, seconds
    limits : what could not be switched or checked, and why
    uncalled : the ATen ops that these prompts never called, of which the verdict says nothing
    steps : by which it was reached; where the engine has ended, the last one did not end
    folder : where inputs and script lie
    """

    outcome: Outcome
    summary: str
    culprits: tuple[Culprit, ...] = ()
    numbers: dict[str, float] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
    uncalled: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    folder: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the verdict as plain data."""
        return {
            **asdict(self),
            "steps": [step.as_data() for step in self.steps],
            "outcome": self.outcome.name.lower(),
            "exit_code": int(self.outcome),
        }

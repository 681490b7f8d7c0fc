"""From measurements of ATen ops to a white list. Nothing here runs anything.

There are two kernels for an op, PyTorch's own and the vendor's. The vendor's is put on the list if it is
exact at every call and faster by more than its error. One that is replaced at present is taken off if it is
not exact, or slower by more than its error. The engine decides about the list as a whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sglang_fl.tune.decide import ATEN, RIGHT, WRONG, Measured, OpVerdict, gain_of

__all__ = ["KERNEL", "PYTORCH", "ListChange", "change_list", "decide_aten"]

#: What an ATen op runs on: PyTorch's own kernel or the vendor's.
PYTORCH, KERNEL = "pytorch", "kernel"


def decide_aten(found: Measured) -> OpVerdict:
    """Decide by an ATen op's calls alone whether its kernel is to be put on or taken off the list."""
    judged = found.judged[KERNEL]
    if judged.state != RIGHT:
        reason, others = "the kernel is not exact", {KERNEL: str(judged)}
        is_known = str(judged).startswith(WRONG)
        if not is_known:
            reason = f"whether the kernel is exact is not known: {judged}"
        best = PYTORCH if is_known and found.present == KERNEL else None
        return OpVerdict(found.op, found.present, best, None, reason, others if is_known else {})
    if not found.timed:
        return OpVerdict(found.op, found.present, None, None, found.trouble or "no time was measured")
    other = PYTORCH if found.present == KERNEL else KERNEL
    gain = gain_of(found, found.present, other)
    best = other if gain.is_faster else None
    kernel = gain if other == KERNEL else gain_of(found, PYTORCH, KERNEL)
    note = f", {judged.text}" if judged.text else ""
    reason = f"{kernel} times the speed of PyTorch's{note}"
    return OpVerdict(found.op, found.present, best, gain if best else None, reason, {}, kernel)


@dataclass(frozen=True)
class ListChange:
    """A white list of ATen ops that differs from what is replaced at present.

    Parameters
    ----------
    names : the list, by exact names
    added, removed : what is on it and not replaced at present, and the other way round
    lifted : names whose quarantine the user has lifted; the list lifts it, too
    """

    names: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    lifted: tuple[str, ...] = ()

    @property
    def order(self) -> str:
        """The list as a setting spells it; ``0`` where nothing is on it: an empty list would be none."""
        return ",".join([*self.names, *(f"!{name}" for name in self.lifted)]) if self.names else "0"

    def __str__(self) -> str:
        signs = [f"+{name.removeprefix(ATEN)}" for name in self.added]
        signs += [f"-{name.removeprefix(ATEN)}" for name in self.removed]
        return f"ATen ops {' '.join(signs)}"


def change_list(
    verdicts: Sequence[OpVerdict], replaced: Sequence[str], lifted: Sequence[str]
) -> ListChange | None:
    """Return the white list that all verdicts together propose; None where it is what is replaced at present.

    What is replaced at present, and of which nothing is known, stays on the list.

    Parameters
    ----------
    verdicts : of the ATen ops that the model calls
    replaced : the exact names of all that are replaced at present
    lifted : names whose quarantine the user has lifted
    """
    added = tuple(v.op for v in verdicts if v.best == KERNEL)
    removed = tuple(v.op for v in verdicts if v.best == PYTORCH)
    if not added and not removed:
        return None
    names = (*(name for name in replaced if name not in removed), *added)
    return ListChange(names, added, removed, tuple(lifted))

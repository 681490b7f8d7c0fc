"""Which ATen ops are replaced, and why the others are not.

The first that says something about an op decides:

1. the vendor's quarantine, unless the user has lifted it by ``!op``;
2. the user's white list: what stands on it is replaced, and nothing else; ``all`` stands for every op;
3. the user's black list;
4. the vendor's list of measured ops;
5. else the op is not replaced: nobody has measured it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sglang_fl.aten.names import ALL, find, find_all, find_white
from sglang_fl.errors import VendorError
from sglang_fl.registry import is_in_force
from sglang_fl.settings import Settings, prepare_environment
from sglang_fl.settings.contradictions import why_no_layer_1
from sglang_fl.startup import Configuration, warn_user
from sglang_fl.vendor import (
    AtenKernel,
    AtenOffer,
    AtenOp,
    AtenQuarantined,
    Vendor,
    load_target,
)

__all__ = [
    "Decision",
    "Plan",
    "free_ops",
    "load_kernels",
    "make_plan",
    "names_of_nothing",
    "offered_ops",
    "plan_layer_1",
]

NOT_MEASURED = "not measured"

Named = TypeVar("Named", bound=AtenOp)


@dataclass(frozen=True)
class Decision:
    """What happens to one ATen op.

    Parameters
    ----------
    op : the op, and the kernel's own name
    is_replaced : whether the vendor's kernel runs instead of PyTorch's
    reason : half a sentence
    """

    op: AtenOp
    is_replaced: bool
    reason: str


@dataclass(frozen=True)
class Plan:
    """What happens to each ATen op that the vendor offers a kernel for.

    Parameters
    ----------
    decisions : one for each op, in the vendor's order
    complaints : what the user asked for and does not get, one line each
    """

    decisions: tuple[Decision, ...] = ()
    complaints: tuple[str, ...] = ()

    @property
    def replaced(self) -> tuple[AtenOp, ...]:
        """The ops that the vendor's kernels run."""
        return tuple(decision.op for decision in self.decisions if decision.is_replaced)


def plan_layer_1(configuration: Configuration) -> Plan | None:
    """Decide for each op from its name, before a model is loaded; None where layer 1 is off.

    A vendor that cannot tell its ops is left out with a warning, unless the user has asked for layer 1.

    Raises
    ------
    SettingsError : as ``make_plan``
    VendorError : as ``make_plan``, if the user has set ``USE_FLAGGEMS``
    """
    settings, vendor = configuration.settings, configuration.registry.vendor
    if why_no_layer_1(settings, vendor):
        return None
    try:
        plan = make_plan(settings, vendor)
    except VendorError as error:
        if settings.is_users("use_flaggems"):
            raise
        warn_user(f"layer 1 stays off: {error}")
        return None
    for complaint in plan.complaints:
        warn_user(complaint)
    return plan


def offered_ops(vendor: Vendor) -> tuple[AtenOp, ...]:
    """Return the ops that a vendor has kernels for, without importing a kernel library; none if it has none.

    Raises
    ------
    VendorError : the vendor cannot tell
    """
    if vendor.aten is None or vendor.aten.missing:
        return ()
    try:
        return _checked(load_target(vendor.aten.ops)(), AtenOp, vendor.aten.ops)
    except VendorError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise VendorError(f"the ATen ops of vendor {vendor} cannot be listed: {what}") from error


def names_of_nothing(vendor: Vendor) -> tuple[str, ...]:
    """Return the names in a vendor's own lists that mean none of its ops: mistyped, or of another version.

    They are of no account in a plan; a test of the vendor package should find none.

    Raises
    ------
    VendorError : the vendor cannot tell its ops
    """
    if vendor.aten is None:
        return ()
    ops = offered_ops(vendor)
    names = [name for choice in vendor.aten.choices for name in choice.names]
    names += [name for entry in vendor.aten.quarantine for name in entry.names]
    return tuple(name for name in names if not find(name, ops))


def make_plan(settings: Settings, vendor: Vendor, ops: Sequence[AtenOp] | None = None) -> Plan:
    """Decide for each op; empty where layer 1 is off.

    Parameters
    ----------
    settings : the effective settings
    vendor : the chosen vendor
    ops : what it really offers; None asks the vendor, without importing a kernel library

    Raises
    ------
    SettingsError : a name in the user's lists that means no op of the vendor's
    VendorError : the vendor cannot tell its ops
    """
    offer = vendor.aten
    if offer is None or why_no_layer_1(settings, vendor):
        return Plan()
    ops = offered_ops(vendor) if ops is None else ops
    lists = _Lists(settings, ops)
    in_force = [entry for entry in offer.quarantine if is_in_force(entry)]
    rules = (_Quarantine(in_force, ops, lists), lists, _Measured(offer, ops))
    decisions = tuple(_decide(op, rules) for op in ops)
    return Plan(decisions, tuple(_complaints(decisions, lists, in_force, ops)))


def free_ops(settings: Settings, vendor: Vendor) -> tuple[AtenOp, ...]:
    """Return the ops that a white list may name and have replaced, whether layer 1 is on or not.

    Those are the vendor's, less what is in quarantine and what the user's black list names.

    Raises
    ------
    SettingsError, VendorError : as ``make_plan``
    """
    if vendor.aten is None:
        return ()
    ops = offered_ops(vendor)
    lists = _Lists(settings, ops)
    in_quarantine = _Quarantine([e for e in vendor.aten.quarantine if is_in_force(e)], ops, lists)
    return tuple(op for op in ops if not in_quarantine(op) and not _naming(op, lists.black))


def load_kernels(vendor: Vendor) -> tuple[AtenKernel, ...]:
    """Import the vendor's ATen kernels; none where it offers none.

    Raises
    ------
    VendorError : what its target returns are not kernels, or there are two for one op
    Exception : whatever importing a kernel library raises
    """
    offer = vendor.aten
    if offer is None:
        return ()
    prepare_environment(vendor)
    return _checked(load_target(offer.kernels)(), AtenKernel, offer.kernels)


def _checked(found: Iterable[object], kind: type[Named], target: str) -> tuple[Named, ...]:
    ops = []
    for op in found:
        if not isinstance(op, kind):
            raise VendorError(f"target {target!r} returned a {type(op).__name__}, not a {kind.__name__}")
        ops.append(op)
    overloads = [op.overload for op in ops]
    for overload in overloads:
        if overloads.count(overload) > 1:
            raise VendorError(f"target {target!r} returned two kernels for aten::{overload}")
    return tuple(ops)


Rule = Callable[[AtenOp], tuple[bool, str] | None]


def _decide(op: AtenOp, rules: Iterable[Rule]) -> Decision:
    for rule in rules:
        answer = rule(op)
        if answer is not None:
            return Decision(op, *answer)
    return Decision(op, is_replaced=False, reason=NOT_MEASURED)


class _Lists:
    """The user's lists of ATen ops, or the vendor's defaults for them."""

    def __init__(self, settings: Settings, ops: Sequence[AtenOp]) -> None:
        white, black = settings.flagos_whitelist, settings.flagos_blacklist
        self.white_title = settings.title("flagos_whitelist")
        self.black_title = settings.title("flagos_blacklist")
        quoted_white, quoted_black = settings.quoted("flagos_whitelist"), settings.quoted("flagos_blacklist")
        self.white = find_white(white.names, ops, quoted_white)
        self.black = find_all(black.names, ops, quoted_black)
        self.lifted = find_all(white.lifted, ops, quoted_white) | find_all(black.lifted, ops, quoted_black)

    def __call__(self, op: AtenOp) -> tuple[bool, str] | None:
        if self.white:
            name = _naming(op, self.white)
            reason = f"{self.white_title} names {name}" if name else f"not in {self.white_title}"
            return name is not None, reason
        name = _naming(op, self.black)
        return (False, f"{self.black_title} names {name}") if name else None


def _naming(op: AtenOp, lists: dict[str, tuple[AtenOp, ...]]) -> str | None:
    """Return the name by which a list means an op, or None."""
    return next((name for name, meant in lists.items() if op in meant), None)


class _Quarantine:
    """The vendor's entries that are in force, less those that the user has lifted."""

    def __init__(self, entries: Iterable[AtenQuarantined], ops: Sequence[AtenOp], lists: _Lists) -> None:
        lifted = {op for meant in lists.lifted.values() for op in meant}
        self._reasons = {
            op: f"in quarantine: {entry}; !{op.name} in a list of SGLANG_FL_FLAGOS_* lifts it"
            for entry in entries
            for op in _ops_of(entry, ops) - lifted
        }

    def __call__(self, op: AtenOp) -> tuple[bool, str] | None:
        return (False, self._reasons[op]) if op in self._reasons else None


class _Measured:
    """The vendor's list of measured ops; what it names and this library lacks is of no account."""

    def __init__(self, offer: AtenOffer, ops: Sequence[AtenOp]) -> None:
        self._choices = {
            op: (choice.is_replaced, choice.reason)
            for choice in offer.choices
            for name in choice.names
            for op in find(name, ops)
        }

    def __call__(self, op: AtenOp) -> tuple[bool, str] | None:
        return self._choices.get(op)


def _complaints(
    decisions: Iterable[Decision], lists: _Lists, in_force: Iterable[AtenQuarantined], ops: Sequence[AtenOp]
) -> Iterable[str]:
    for decision in decisions:
        name = _naming(decision.op, lists.white)
        if name and name != ALL and not decision.is_replaced:
            yield f"{lists.white_title}: {name} ({decision.op}) is not replaced: {decision.reason}"
    for name, meant in lists.lifted.items():
        lifted = [entry for entry in in_force if set(meant) & _ops_of(entry, ops)]
        for entry in lifted:
            yield f"!{name} lifts the quarantine of {', '.join(map(str, meant))}: {entry}"
        if not lifted:
            yield f"!{name} lifts nothing: that ATen op is not in quarantine here"


def _ops_of(entry: AtenQuarantined, ops: Sequence[AtenOp]) -> set[AtenOp]:
    return {op for name in entry.names for op in find(name, ops)}

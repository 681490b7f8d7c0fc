"""What there is to choose from: for each op what runs at present, and what else could. From names alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sglang_fl.dispatch.resolution import Walked, walk
from sglang_fl.errors import SettingsError, choices, quoted
from sglang_fl.ops import OPS
from sglang_fl.ops.catalogue import PARTS
from sglang_fl.registry import Registry
from sglang_fl.settings import Settings
from sglang_fl.settings.policy import SGLANG, Policy
from sglang_fl.vendor import BackendKind

__all__ = ["Subject", "passes", "refuse_untunable", "subjects_of"]

#: Settings that stand against what the file will say.
AGAINST = ("oot_whitelist", "oot_blacklist")


@dataclass(frozen=True)
class Subject:
    """One op that has something to choose from.

    Parameters
    ----------
    op : its name
    present : what runs it now: an implementation's id, or ``sglang``
    targets : of each implementation that is available here, by its id; the reference is one of them
    skipped : implementations that are not, and why
    """

    op: str
    present: str
    targets: Mapping[str, str]
    skipped: Mapping[str, str]


def subjects_of(registry: Registry, policy: Policy, wanted: Sequence[str] = ()) -> tuple[Subject, ...]:
    """Return the ops for which the vendor has more than core's reference.

    Parameters
    ----------
    registry : the chosen vendor's
    policy : what the user has set
    wanted : only these ops; none for all

    Raises
    ------
    SettingsError : there is no such op, or nothing to choose from for it
    """
    for name in wanted:
        if name not in OPS:
            raise SettingsError(f"--op {quoted(name)}: there is no such op. {choices(name, OPS)}")
    found = {op: subject for op in OPS if (subject := _subject(op, registry, policy))}
    for name in wanted:
        if name not in found:
            raise SettingsError(
                f"--op {quoted(name)}: vendor {registry.vendor} has no implementation of it that is "
                f"available here. {choices(name, found)}"
            )
    return tuple(subject for op, subject in found.items() if not wanted or op in wanted)


def _subject(op: str, registry: Registry, policy: Policy) -> Subject | None:
    every = walk(op, registry, replace(policy, per_op={}, prefer=BackendKind.FLAGOS))
    if all(impl.kind is BackendKind.REFERENCE for impl in every.candidates):
        return None
    targets = {impl.id: impl.target for impl in every.candidates}
    skipped = {step.what: step.reason for step in every.skipped if step.what not in _KINDS}
    return Subject(op, _present(op, walk(op, registry, policy), registry, policy), targets, skipped)


_KINDS = tuple(kind.value for kind in BackendKind)


def _present(op: str, walked: Walked, registry: Registry, policy: Policy) -> str:
    if walked.sglang_first or not walked.candidates:
        return SGLANG
    first = walked.candidates[0]
    is_last_resort = first.kind is BackendKind.REFERENCE and not policy.names_reference(op)
    return SGLANG if is_last_resort and registry.vendor.device_type != "cpu" else first.id


def passes(ops: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return ops in groups that one engine can run at once: an op that stands for others has its own."""
    plain = tuple(op for op in ops if op not in PARTS)
    return tuple(group for group in (plain, *((op,) for op in ops if op in PARTS)) if group)


def refuse_untunable(settings: Settings) -> None:
    """Refuse settings beside which the written file would not mean what it says.

    Raises
    ------
    SettingsError : the first of them
    """
    if not settings.oot_enabled:
        raise SettingsError(f"{settings.quoted('oot_enabled')}: layer 2 is off, there is nothing to choose")
    for name in AGAINST:
        if getattr(settings, name):
            raise SettingsError(
                f"{settings.quoted(name)}: it leaves layers to SGLang, and tune writes op_backends for all. "
                "Unset it, or write what it says as op_backends: OP: sglang."
            )
    if settings.source("per_op") == "environment":
        raise SettingsError(
            f"{settings.quoted('per_op')}: it stands above the file that tune writes. Unset it; what it "
            "says can stand in the file of SGLANG_FL_CONFIG as op_backends."
        )

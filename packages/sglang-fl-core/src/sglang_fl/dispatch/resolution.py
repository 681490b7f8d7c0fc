"""An op's candidates in order, and the reason of each implementation that is not one.

Dispatch order of an op, highest first:

1. the order that the user gave for it (``SGLANG_FL_PER_OP``); nothing else runs then;
2. else the preferred kind (``SGLANG_FL_PREFER``, else the vendor's default), then the other kinds
   in the order flagos, vendor, reference; nothing where ``sglang`` is preferred;
3. within one step, the order of the vendor's list;
4. what is not available here, belongs to a vendor that the user's filters exclude, or is in quarantine is
   skipped, with the reason;
5. where the step ``sglang`` comes before all candidates, or the first candidate was measured to cost more
   than what SGLang runs itself and the user did not ask for it, the op is SGLang's; so is one that stands
   for several layers (``PARTS``) where the reference is its first candidate, or where a part has an order of
   its own; what comes after the step ``sglang`` is not tried;
6. among the rest the first call decides (``life``).
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sglang_fl.errors import SettingsError
from sglang_fl.ops import OPS
from sglang_fl.ops.catalogue import PARTS
from sglang_fl.registry import Registry, why_not_installed
from sglang_fl.settings.policy import Policy, Token
from sglang_fl.vendor import BackendKind, OpImpl

if TYPE_CHECKING:
    from sglang_fl.ops import Op

__all__ = [
    "Resolution",
    "Skipped",
    "Walked",
    "check_orders",
    "reference_alone",
    "resolve",
    "resolve_all",
    "walk",
]


@dataclass(frozen=True)
class Skipped:
    """A step of the order, or an implementation, that is no candidate, and why.

    Parameters
    ----------
    what : the order token's text, or the implementation's id
    reason : half a sentence
    """

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass(frozen=True)
class Resolution:
    """What may run an op here.

    Parameters
    ----------
    op : the op
    candidates : in the order in which their first calls are tried; empty only where the op is SGLang's
    passed_over : the steps before the first candidate; they cannot run here
    skipped : all steps that cannot run here
    excluded : implementations that exist here but that no step of the order asks for
    strict : a failing candidate is an error
    prefers_sglang : the reference stands last only because nobody named it, and the device is a chip: where
        SGLang has a kernel of its own for a layer, that one is the last resort
    sglang_first : why every layer of this op is SGLang's, whatever the candidates are; None where they are
        tried
    then_sglang : the user's order ends with SGLang's own path, which runs where no candidate can
    """

    op: "Op"
    candidates: tuple[OpImpl, ...]
    passed_over: tuple[Skipped, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    excluded: tuple[Skipped, ...] = ()
    strict: bool = False
    prefers_sglang: bool = False
    sglang_first: str | None = None
    then_sglang: bool = False


def resolve(op: "Op", registry: Registry, policy: Policy) -> Resolution:
    """Walk the order of an op.

    Raises
    ------
    SettingsError : the user asked for this op's backend, and none of what was asked is available;
        the message names the op, what was asked, why not, and what is available
    """
    walked = walk(op.name, registry, policy)
    return Resolution(
        op,
        candidates=walked.candidates,
        passed_over=walked.passed_over,
        skipped=walked.skipped,
        excluded=walked.excluded,
        strict=policy.strict,
        prefers_sglang=registry.vendor.device_type != "cpu" and not policy.names_reference(op.name),
        sglang_first=walked.sglang_first,
        then_sglang=walked.then_sglang,
    )


@dataclass(frozen=True)
class Walked:
    """The order of an op, walked by its name alone: no op is imported, and so no PyTorch.

    Parameters
    ----------
    candidates, passed_over, skipped, excluded, sglang_first, then_sglang : as in ``Resolution``
    """

    candidates: tuple[OpImpl, ...]
    passed_over: tuple[Skipped, ...]
    skipped: tuple[Skipped, ...]
    excluded: tuple[Skipped, ...]
    sglang_first: str | None
    then_sglang: bool


def walk(op: str, registry: Registry, policy: Policy) -> Walked:
    """Walk the order of the op of a name.

    Raises
    ------
    SettingsError : as ``resolve``
    """
    impls, asked = registry.implementations(op), policy.order(op)
    order = tuple(itertools.takewhile(lambda token: not token.is_sglangs, asked))
    steps = [step for token in order for step in _steps(op, registry, policy, token)]
    candidates = [step for step in dict.fromkeys(steps) if isinstance(step, OpImpl)]
    skipped = [step for step in dict.fromkeys(steps) if isinstance(step, Skipped)]
    if not candidates and len(order) == len(asked):
        raise SettingsError(_refusal(op, registry, policy, skipped))
    excluded = (impl for impl in impls if not any(token.selects(impl) for token in order))
    return Walked(
        tuple(candidates),
        tuple(_skipped_first(steps)),
        tuple(skipped),
        tuple(Skipped(impl.id, "not in the order given for this op") for impl in excluded),
        _why_sglang_first(op, candidates, registry, policy),
        then_sglang=len(order) < len(asked),
    )


def _skipped_first(steps: list[OpImpl | Skipped]) -> Iterator[Skipped]:
    """Yield the steps before the first candidate."""
    for step in steps:
        if isinstance(step, OpImpl):
            return
        yield step


def _why_sglang_first(op: str, candidates: list[OpImpl], registry: Registry, policy: Policy) -> str | None:
    """Say why SGLang's own kernel runs and no candidate is tried, or None."""
    if not candidates:
        return f"asked for by {policy.title('per_op' if op in policy.per_op else 'prefer')}"
    first, parts = candidates[0], PARTS.get(op, ())
    named = [part for part in parts if part in policy.per_op]
    if named and op not in policy.per_op:
        return f"{policy.title('per_op')} names {named[0]}, which is a part of it"
    if parts and first.kind is BackendKind.REFERENCE and not policy.asks_for(first):
        return f"its parts are layers of SGLang, which have ops of their own: {', '.join(parts)}"
    choice = registry.choice(first)
    if choice is None or choice.is_default or policy.asks_for(first):
        return None
    return f"{first} is no default here: {choice.reason}"


def _steps(op: str, registry: Registry, policy: Policy, token: Token) -> Iterator[OpImpl | Skipped]:
    """Yield what one step of an order comes to: candidates, or reasons why there is none."""
    meant = [impl for impl in registry.implementations(op) if token.selects(impl)]
    if not meant:
        yield Skipped(token.text, _why_none(registry, token))
    for impl in meant:
        reason = _why_not(impl, op, registry, policy)
        yield Skipped(impl.id, reason) if reason else impl


def _why_not(impl: OpImpl, op: str, registry: Registry, policy: Policy) -> str | None:
    """Say why an implementation may not run, or None."""
    missing = why_not_installed(impl)
    denied = policy.why_denied(registry.vendor.name) if impl.kind is BackendKind.VENDOR else None
    if missing or denied or op in policy.lifted:
        return missing or denied
    for entry in registry.quarantine(op):
        if entry.impl == impl.id:
            return f"in quarantine: {entry}; !{op} in a list of SGLANG_FL_OOT_* lifts it"
    return None


def _why_none(registry: Registry, token: Token) -> str:
    text = f"vendor {registry.vendor} has none"
    if token.text == BackendKind.REFERENCE.value:
        return text
    others = [
        f"{other.name}: {other.why_not or 'not the chosen vendor'}"
        for other in registry.installed
        if other.name not in (registry.vendor.name, "cpu")
    ]
    return f"{text} ({'; '.join(others)})" if others else f"{text}, and no other vendor is installed"


def _refusal(op: str, registry: Registry, policy: Policy, skipped: list[Skipped]) -> str:
    asked = "|".join(map(str, policy.order(op)))
    impls = registry.implementations(op)
    available = [impl.id for impl in impls if not _why_not(impl, op, registry, policy)]
    return (
        f"{policy.title('per_op')}: '{op}={asked}' is not available here: "
        f"{'; '.join(map(str, skipped))}. Available for {op}: {', '.join(available)}."
    )


def reference_alone(resolution: Resolution) -> Resolution:
    """Return the resolution of the same op by its reference and nothing else."""
    op = resolution.op
    return Resolution(op, (OpImpl(op.name, BackendKind.REFERENCE, "reference", op.target),))


def resolve_all(registry: Registry, policy: Policy) -> dict[str, Resolution]:
    """Resolve every op, so that a request that cannot be met is refused before a model is loaded.

    Raises
    ------
    SettingsError : as ``resolve``; the messages of several ops are joined, one line each
    """
    check_orders(registry, policy)
    return {name: resolve(op, registry, policy) for name, op in OPS.items()}


def check_orders(registry: Registry, policy: Policy) -> None:
    """Refuse orders that cannot be met, without importing an op.

    Raises
    ------
    SettingsError : as ``resolve_all``
    """
    refusals = []
    for name in OPS:
        try:
            walk(name, registry, policy)
        except SettingsError as error:
            refusals.append(str(error))
    if refusals:
        raise SettingsError("\n".join(refusals))

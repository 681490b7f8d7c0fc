"""From two sides' answers to a verdict: where log-probabilities part by more than rounding and drift explain.

Pure: nothing is asked here. ``places`` says what difference and drift are. A class of requests

1. *differs* where its largest or its mean difference is above the threshold for it, that is the largest of:
   the floor of the servers' dtype, three times the drift of the class, and the drift of any class;
2. is *undecided* where a difference or a drift is above the floor, and no difference above the threshold: the
   sides do not repeat themselves well enough to tell;
3. is the *same* otherwise.
"""

import enum
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sglang_fl.compare.findings import Finding, findings_in, listed
from sglang_fl.compare.places import Exchange, Place, places_of
from sglang_fl.compare.questions import CLASSES, DECODE

__all__ = ["FACTOR", "FEWEST", "ClassVerdict", "Judgement", "Outcome", "floor_of", "judge"]

#: The largest difference of a log-probability, in nats, that rounding makes between right sides. A logit of
#: 16 to 32 is told in steps of 0.125 in bfloat16. SmolLM2-135M in bfloat16 was within 0.04 of transformers in
#: float32 at half of 237 places, and 0.44 from it at the worst; two servers that round have twice as much.
#: float16 has 8 times finer steps. In float32 sums in another order were seen to make 4e-6, and the mistakes
#: that tests plant make more than 1e-3.
FLOORS = {"bfloat16": 1.0, "float16": 0.125, "half": 0.125, "float32": 1e-3, "float": 1e-3}
#: Weights or a cache of 8 bits or fewer: kernels may round activations differently as well.
QUANTIZED = 2.0
#: The mean may be this part of the largest: one place may be an outlier, not all of them. Given and generated
#: tokens have a mean each, lest a few wrong steps drown in many right places. Of the likeliest tokens of a
#: step the one that differs most counts, which doubles the mean there.
MEAN = 1 / 4
#: Differences above the floor count from this multiple of the class's drift on: that two draws of a noise are
#: further from a third than from each other happens by chance. In a class of few places two draws may even
#: meet, so that the drift of all classes counts as well, once.
FACTOR = 3.0
#: Fewer places than this say nothing.
FEWEST = 20
#: Places that are listed.
WORST = 10


class Outcome(enum.IntEnum):
    """How a comparison ended; the value is the exit code."""

    SAME = 0
    DIFFER = 1
    NO_ANSWER = 2
    CANNOT_DECIDE = 3


@dataclass(frozen=True)
class ClassVerdict:
    """What is known of one class of requests.

    Parameters
    ----------
    name : one of ``CLASSES``
    places : log-probabilities that were compared
    largest, mean : difference of its places, in nats; the larger of the means over given and over generated
        tokens, of which there are at least ``FEWEST``
    drift_a, drift_b : the largest drift of each side
    threshold, mean_threshold : for the largest and the mean difference; above one of them, it differs
    verdict : ``same``, ``differs``, ``undecided`` or ``not asked``
    where : ``given tokens``, ``generated tokens`` or ``both``: what is above the threshold
    """

    name: str
    places: int
    largest: float
    mean: float
    drift_a: float
    drift_b: float
    threshold: float
    mean_threshold: float
    verdict: str
    where: str = ""


@dataclass(frozen=True)
class Judgement:
    """What the answers say.

    Parameters
    ----------
    outcome : see ``Outcome``
    summary : one sentence
    classes : one for each of ``CLASSES``
    findings : beside the differences
    worst : the places that differ most, the worst first
    floor : of the servers' dtype
    """

    outcome: Outcome
    summary: str
    classes: tuple[ClassVerdict, ...]
    findings: tuple[Finding, ...] = ()
    worst: tuple[Place, ...] = field(default=())
    floor: float = 0.0


def floor_of(dtypes: Iterable[str], is_quantized: bool) -> float:
    """Return the largest difference that rounding may make between two right sides.

    Parameters
    ----------
    dtypes : of both sides; one that is not told, or ``auto``, counts as bfloat16
    is_quantized : whether weights or KV cache of one of them are
    """
    return max([*(FLOORS.get(name, FLOORS["bfloat16"]) for name in dtypes), QUANTIZED * is_quantized])


def judge(exchanges: Sequence[Exchange], floor: float) -> Judgement:
    """Compare the answers of two sides.

    Parameters
    ----------
    exchanges : every question with its answers
    floor : differences up to it are rounding
    """
    places = [place for number, exchange in enumerate(exchanges) for place in places_of(number, exchange)]
    drifts = {name: _drift([place for place in places if place.name == name]) for name in CLASSES}
    least = _Size(
        max(floor, *(drift.largest for drift in drifts.values())),
        max(floor * MEAN, *(drift.mean for drift in drifts.values())),
    )
    classes = tuple(_class_verdict(name, places, floor, least) for name in CLASSES)
    differs = any(row.name == DECODE and row.verdict == "differs" for row in classes)
    findings = [*findings_in(exchanges, differs), *_drifts(classes, floor)]
    outcome, summary = _conclusion(classes, findings, len(places))
    worst = sorted(places, key=lambda place: -place.difference)[:WORST]
    return Judgement(
        outcome, summary, classes, tuple(findings), tuple(p for p in worst if p.difference > 0), floor
    )


@dataclass(frozen=True)
class _Size:
    largest: float
    mean: float

    def exceeds(self, other: "_Size") -> bool:
        return self.largest > other.largest or self.mean > other.mean


def _class_verdict(name: str, all_places: list[Place], floor: float, least: _Size) -> ClassVerdict:
    places = [place for place in all_places if place.name == name]
    drift, size = _drift(places), _size(places, [place.difference for place in places])
    threshold = _Size(max(least.largest, FACTOR * drift.largest), max(least.mean, FACTOR * drift.mean))
    rounding = _Size(floor, floor * MEAN)
    verdict, where = "same", ""
    if not places:
        verdict = "not asked"
    elif size.exceeds(threshold):
        verdict, where = "differs", _where(places, threshold)
    elif size.exceeds(rounding) or drift.exceeds(rounding):
        verdict = "undecided"
    a, b = (max((_finite(place.drifts[side]) for place in places), default=0.0) for side in (0, 1))
    return ClassVerdict(
        name, len(places), size.largest, size.mean, a, b, threshold.largest, threshold.mean, verdict, where
    )


def _where(places: list[Place], threshold: _Size) -> str:
    kinds = set()
    for is_step in (True, False):
        of_kind = [place for place in places if place.is_step == is_step]
        if _size(of_kind, [place.difference for place in of_kind]).exceeds(threshold):
            kinds.add(is_step)
    return "generated tokens" if kinds == {True} else "given tokens" if kinds == {False} else "both"


def _size(places: list[Place], values: list[float]) -> _Size:
    means = [0.0]
    for is_step in (True, False):
        kind = [value for place, value in zip(places, values, strict=True) if place.is_step == is_step]
        if len(kind) >= FEWEST:
            means.append(sum(kind) / len(kind))
    return _Size(max(values, default=0.0), max(means))


def _drift(places: list[Place]) -> _Size:
    """Return the drift of the side that drifts more, place by place."""
    return _size(places, [max(map(_finite, place.drifts)) for place in places])


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _drifts(classes: Sequence[ClassVerdict], floor: float) -> Iterator[Finding]:
    for side in "AB":
        drifts = {row.name: row.drift_a if side == "A" else row.drift_b for row in classes}
        above = [name for name, drift in drifts.items() if drift > floor]
        if above:
            what = f"{side} answers the same question otherwise by up to {max(drifts.values()):.3g} nats"
            yield Finding("drift", side, f"{what} ({listed(above)})", is_fault=False)


def _conclusion(
    classes: Sequence[ClassVerdict], findings: Sequence[Finding], places: int
) -> tuple[Outcome, str]:
    by_verdict: dict[str, list[ClassVerdict]] = defaultdict(list)
    for row in classes:
        by_verdict[row.verdict].append(row)
    differing = by_verdict["differs"]
    faults = sorted({finding.kind for finding in findings if finding.is_fault})
    if differing or faults:
        return Outcome.DIFFER, "; ".join([*_affected(differing, by_verdict["same"]), *faults])
    if places < FEWEST:
        return Outcome.CANNOT_DECIDE, f"{places} log-probabilities say nothing; give more or longer prompts"
    if by_verdict["undecided"]:
        names = listed([row.name for row in by_verdict["undecided"]])
        return Outcome.CANNOT_DECIDE, f"the sides' own drift hides whether they agree: {names}"
    return Outcome.SAME, f"{places} log-probabilities agree within rounding"


def _affected(differing: Sequence[ClassVerdict], same: Sequence[ClassVerdict]) -> Iterator[str]:
    if not differing:
        return
    names = listed([row.name for row in differing])
    right = listed([row.name for row in same])
    wheres = {row.where for row in differing}
    only = f", in {wheres.pop()} alone" if len(wheres) == 1 and "both" not in wheres else ""
    yield f"{names} differ{only}{f'; {right} agree' if right else ''}"

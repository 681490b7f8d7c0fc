"""A comparison as it is shown: plain lines for people, plain data for programs."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from sglang_fl.compare.judge import FACTOR, MEAN, ClassVerdict, Outcome
from sglang_fl.compare.places import Place
from sglang_fl.compare.procedure import Comparison

__all__ = ["as_data", "as_lines", "failed"]

LETTERS = "AB"
_NUMBERS = ("largest", "allowed", "mean", "allowed", "drift A", "drift B")
_CLASSES = ("requests", "places", *_NUMBERS, "verdict", "where")
_PLACES = ("requests", "question", "begins", "place", "token", *LETTERS, "difference", "drift A", "drift B")


def as_lines(comparison: Comparison) -> Iterable[str]:
    """Return what is printed."""
    judgement = comparison.judgement
    yield f"{_named(judgement.outcome)}: {judgement.summary}"
    for side, about in zip(LETTERS, comparison.sides, strict=True):
        facts = (about.software, about.architecture, about.dtype, about.quantization)
        yield f"{side} = {about.title} ({', '.join(filter(None, facts))})"
    yield ""
    yield from _table(_CLASSES, [_class(row) for row in judgement.classes])
    if judgement.worst:
        yield ""
        yield "The places that differ most"
        yield from _table(_PLACES, [_place(place) for place in judgement.worst])
    yield ""
    for finding in judgement.findings:
        yield f"{finding.kind}: {finding.text}"
    yield from comparison.limits
    yield (
        f"Nats. Allowed for rounding: {judgement.floor:g} at most, {judgement.floor * MEAN:.3g} in mean, "
        f"or {FACTOR:g} times the drift if that is more."
    )
    yield f"{comparison.questions} questions, twice to each side, {comparison.seconds:.0f} s"


def as_data(comparison: Comparison) -> dict[str, Any]:
    """Return the object that ``--json`` prints."""
    judgement = comparison.judgement
    return {
        "outcome": _named(judgement.outcome),
        "exit_code": int(judgement.outcome),
        "summary": judgement.summary,
        "sides": dict(zip(LETTERS, map(asdict, comparison.sides), strict=True)),
        "floor": judgement.floor,
        "classes": [asdict(row) for row in judgement.classes],
        "findings": [asdict(finding) for finding in judgement.findings],
        "worst": [asdict(place) for place in judgement.worst],
        "limits": list(comparison.limits),
        "questions": comparison.questions,
        "seconds": round(comparison.seconds, 1),
    }


def failed(reason: str) -> dict[str, Any]:
    """Return the object that ``--json`` prints where nothing was compared."""
    return {"outcome": _named(Outcome.NO_ANSWER), "exit_code": int(Outcome.NO_ANSWER), "summary": reason}


def _named(outcome: Outcome) -> str:
    return outcome.name.lower().replace("_", " ")


def _class(row: ClassVerdict) -> tuple[str, ...]:
    return row.name, str(row.places), *map(_nats, _numbers(row)), row.verdict, row.where


def _place(place: Place) -> tuple[str, ...]:
    begins = " ".join(map(str, place.text[:4]))
    numbers = (place.a, place.b, place.difference, *place.drifts)
    cells = ("not named" if number is None else _nats(number) for number in numbers)
    return (place.name, str(place.sequence), begins, place.place, str(place.token), *cells)


def _numbers(row: ClassVerdict) -> tuple[float, ...]:
    return row.largest, row.threshold, row.mean, row.mean_threshold, row.drift_a, row.drift_b


def _nats(number: float) -> str:
    return f"{number:.3g}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

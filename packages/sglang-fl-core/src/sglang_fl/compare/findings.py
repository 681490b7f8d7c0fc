"""What is wrong with answers by themselves: no numbers, nothing, a loop, garbage."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sglang_fl.compare.answers import Answer
from sglang_fl.compare.places import Exchange
from sglang_fl.compare.questions import CLASSES, Question

__all__ = ["Finding", "findings_in", "listed"]

#: A loop: so many tokens at the end repeat a pattern that is not longer than ``PERIOD``.
LOOPED, PERIOD = 16, 4


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with one side's answers by themselves.

    Parameters
    ----------
    kind : ``not finite``, ``empty``, ``loop``, ``garbage`` or ``drift``
    side : ``A``, ``B`` or ``both``
    text : one sentence
    is_fault : whether it alone makes the sides differ
    """

    kind: str
    side: str
    text: str
    is_fault: bool = True


def findings_in(exchanges: Sequence[Exchange], decode_differs: bool) -> list[Finding]:
    """Look at the answers of both sides.

    Parameters
    ----------
    exchanges : every question with its answers
    decode_differs : whether the log-probabilities of decode steps part
    """
    findings = [*_not_finite(exchanges), *_empty(exchanges), *_garbage(exchanges)]
    return [*findings, *_loops(exchanges, decode_differs)]


def listed(names: Iterable[str]) -> str:
    """Return the names of classes of requests in their usual order."""
    return ", ".join(name for name in CLASSES if name in names)


def _by_side(exchanges: Sequence[Exchange]) -> Iterator[tuple[str, Question, tuple[int, ...], Answer]]:
    for exchange in exchanges:
        for side, rows in zip("AB", exchange.sides, strict=True):
            for row in rows:
                for text, answer in zip(exchange.question.sequences, row, strict=True):
                    yield side, exchange.question, text, answer


def _not_finite(exchanges: Sequence[Exchange]) -> Iterator[Finding]:
    counts: dict[str, int] = defaultdict(int)
    classes: dict[str, set[str]] = defaultdict(set)
    for side, question, _, answer in _by_side(exchanges):
        numbers = [
            *answer.given,
            *(value for top in (*answer.given_tops, *answer.tops) for value in top.values()),
        ]
        bad = sum(not math.isfinite(number) for number in numbers)
        if bad:
            counts[side] += bad
            classes[side].add(question.name)
    for side, count in counts.items():
        yield Finding(
            "not finite",
            side,
            f"{count} log-probabilities of {side} are NaN, infinite or null ({listed(classes[side])})",
        )


def _empty(exchanges: Sequence[Exchange]) -> Iterator[Finding]:
    counts: dict[str, int] = defaultdict(int)
    classes: dict[str, set[str]] = defaultdict(set)
    for side, question, text, answer in _by_side(exchanges):
        is_short = len(answer.tokens) < question.steps or len(answer.tops) < question.steps
        if is_short or len(answer.given) != len(text) - 1 - question.start:
            counts[side] += 1
            classes[side].add(question.name)
    for side, count in counts.items():
        what = f"{count} answers of {side} are empty, or shorter than what was asked for"
        yield Finding("empty", side, f"{what} ({listed(classes[side])})")


def _garbage(exchanges: Sequence[Exchange]) -> Iterator[Finding]:
    """Find sides that have nothing in common: that is more than a kernel which is a little wrong."""
    places = strange = 0
    for exchange in exchanges:
        for x, y in zip(*(rows[0] for rows in exchange.sides), strict=True):
            for one, other in zip(x.given_tops, y.given_tops, strict=False):
                places += 1
                strange += not one.keys() & other.keys()
    if places and 2 * strange > places:
        yield Finding(
            "garbage",
            "both",
            f"at {strange} of {places} places the sides have none of their likeliest tokens in common: one "
            f"of them answers garbage, or they serve other weights",
        )


def _loops(exchanges: Sequence[Exchange], decode_differs: bool) -> Iterator[Finding]:
    """Find continuations that repeat themselves on one side alone.

    Where the numbers agree up to the step at which the continuations part, the other side would have gone on
    so as well: then it is the model's habit, and no fault.
    """
    counts = {"A": 0, "B": 0}
    for exchange in exchanges:
        for x, y in zip(*(rows[0] for rows in exchange.sides), strict=True):
            loops = [_is_loop(answer.tokens) for answer in (x, y)]
            if loops[0] != loops[1]:
                counts["A" if loops[0] else "B"] += 1
    for side, count in counts.items():
        if count:
            what = f"{count} continuations of {side} repeat themselves, where the other side's do not"
            yield Finding("loop", side, what, decode_differs)


def _is_loop(tokens: tuple[int, ...]) -> bool:
    end = tokens[-LOOPED:]
    return len(end) == LOOPED and any(end[:-period] == end[period:] for period in range(1, PERIOD + 1))

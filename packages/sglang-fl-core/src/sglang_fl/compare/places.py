"""Places: the log-probabilities that both sides gave, how far apart they are, and each side from itself.

Each question is asked twice of each side. Two askings of one side differ by its *drift*. Of the four
pairs that have one asking of each side the closest is the *difference*: what went astray once is drift.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from sglang_fl.compare.answers import Answer, Top
from sglang_fl.compare.questions import DECODE, Question

__all__ = ["Exchange", "Place", "places_of"]

Row = tuple[Answer, ...]


@dataclass(frozen=True)
class Exchange:
    """A question and what both sides answered, each side twice.

    Parameters
    ----------
    question : what was asked
    sides : for each of the two sides its askings; each with an answer for each sequence
    """

    question: Question
    sides: tuple[tuple[Row, ...], tuple[Row, ...]]


@dataclass(frozen=True)
class Place:
    """One log-probability that both sides gave.

    Parameters
    ----------
    name : the class of requests
    sequence, text : which question's sequence it is of, and its first token ids
    place : ``token 17`` of those that were given, or ``step 3`` of those that were generated
    token : its id
    a, b : its log-probability on each side, as first answered; None where it was not among the likeliest
    difference : between the sides, in nats; inf where one of them is no number
    drifts : by how much each side's two askings differ
    """

    name: str
    sequence: int
    text: tuple[int, ...]
    place: str
    token: int
    a: float | None
    b: float | None
    difference: float
    drifts: tuple[float, float]

    @property
    def is_step(self) -> bool:
        """Whether it was generated: computed in a decode step, or at the end of the prompt."""
        return self.place.startswith("step")


def places_of(number: int, exchange: Exchange) -> Iterator[Place]:
    """Return every log-probability that both sides gave.

    Parameters
    ----------
    number : of the question
    exchange : the question and its answers
    """
    question = exchange.question
    for at, text in enumerate(question.sequences):
        firsts, seconds = ([row[at] for row in rows] for rows in exchange.sides)
        if question.name != DECODE:  # there the given tokens are those of the other classes
            yield from _given(question, number, text, firsts, seconds)
        yield from _generated(question.name, number, text, firsts, seconds)


def _given(
    question: Question, number: int, text: tuple[int, ...], firsts: list[Answer], seconds: list[Answer]
) -> Iterator[Place]:
    tokens = text[question.start + 1 :]
    if any(len(answer.given) != len(tokens) for answer in (*firsts, *seconds)):
        return  # a finding of its own
    for index, token in enumerate(tokens):
        a, b = ([answer.given[index] for answer in answers] for answers in (firsts, seconds))
        yield Place(
            question.name,
            number,
            text[:8],
            f"token {question.start + 1 + index}",
            token,
            a[0],
            b[0],
            min(_gap(x, y) for x, y in itertools.product(a, b)),
            (_spread(a), _spread(b)),
        )


def _generated(
    name: str, number: int, text: tuple[int, ...], firsts: list[Answer], seconds: list[Answer]
) -> Iterator[Place]:
    pairs = [(x, y, _comparable(x, y)) for x, y in itertools.product(firsts, seconds)]
    for step in range(max(steps for _, _, steps in pairs)):
        gaps = [
            (*_gap_of_tops(x.tops[step], y.tops[step]), x.tops[step], y.tops[step])
            for x, y, steps in pairs
            if step < steps
        ]
        difference, token, a, b = min(gaps, key=lambda gap: gap[0])
        drifts = (_drift_of_step(firsts, step), _drift_of_step(seconds, step))
        yield Place(
            name, number, text[:8], f"step {step + 1}", token, a.get(token), b.get(token), difference, drifts
        )


def _comparable(one: Answer, other: Answer) -> int:
    """Return the number of steps that had the same tokens before them."""
    both = list(zip(one.tokens, other.tokens, strict=False))
    same = next((step for step, (x, y) in enumerate(both) if x != y), len(both))
    return min(same + 1, len(one.tops), len(other.tops))


def _drift_of_step(answers: list[Answer], step: int) -> float:
    pairs = itertools.combinations(answers, 2)
    return max(
        (_gap_of_tops(x.tops[step], y.tops[step])[0] for x, y in pairs if step < _comparable(x, y)), default=0
    )


def _gap(one: float, other: float) -> float:
    if math.isnan(one) and math.isnan(other):
        return 0.0  # a finding of its own
    return math.inf if math.isnan(one) or math.isnan(other) else abs(one - other)


def _spread(values: list[float]) -> float:
    gaps = (_gap(x, y) for x, y in itertools.combinations(values, 2))
    return max((gap for gap in gaps if math.isfinite(gap)), default=0.0)


def _gap_of_tops(one: Top, other: Top) -> tuple[float, int]:
    """Return the largest difference of a likeliest token, and the token.

    A token that only one side names is at most as likely on the other as the last one that this names: the
    difference is at least what is between them.
    """
    gaps = [(_gap(one[token], other[token]), token) for token in one.keys() & other.keys()]
    for named, others in ((one, other), (other, one)):
        gaps += [(_least_gap(named[token], others), token) for token in named.keys() - others.keys()]
    return max(gaps, default=(0.0, -1))


def _least_gap(value: float, others: Top) -> float:
    are_numbers = others and not any(map(math.isnan, others.values()))
    return max(0.0, value - min(others.values())) if are_numbers and not math.isnan(value) else math.inf

"""What one side says of one token sequence: log-probabilities in nats, never texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Answer", "Top", "answer_of"]

#: The likeliest tokens of a place, and the log-probability of each.
Top = dict[int, float]


@dataclass(frozen=True)
class Answer:
    """What a side says of one sequence.

    Parameters
    ----------
    given : the log-probability of each given token behind the one at which they were asked for; NaN where the
        side gave none
    given_tops : for each of these places the likeliest tokens
    tokens : what the side generated, the likeliest token each time
    tops : for each of these steps the likeliest tokens
    cached : how many of the given tokens the side took from its prefix cache
    """

    given: tuple[float, ...]
    given_tops: tuple[Top, ...]
    tokens: tuple[int, ...]
    tops: tuple[Top, ...]
    cached: int = 0


def answer_of(row: dict[str, Any]) -> Answer:
    """Read one element of what SGLang's ``/generate`` returns.

    Raises
    ------
    KeyError, TypeError, ValueError, IndexError : it is of another shape
    """
    about = row["meta_info"]
    return Answer(
        # SGLang has no number for the first token: nothing is before it.
        given=tuple(_number(entry[0]) for entry in about["input_token_logprobs"][1:]),
        given_tops=tuple(_top(entries) for entries in about["input_top_logprobs"][1:]),
        tokens=tuple(int(entry[1]) for entry in about["output_token_logprobs"]),
        tops=tuple(_top(entries) for entries in about["output_top_logprobs"]),
        cached=int(about.get("cached_tokens") or 0),
    )


def _number(value: float | None) -> float:
    """Return a number; SGLang's JSON writes null for one that is not finite."""
    return math.nan if value is None else float(value)


def _top(entries: Sequence[Any] | None) -> Top:
    return {int(entry[1]): _number(entry[0]) for entry in entries or ()}

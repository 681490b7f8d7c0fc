"""What one pass of a model says, and how far two passes are apart. Log-probabilities, never texts."""

import math
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Distance", "Reading", "distance", "reading"]

Top = dict[int, float]


@dataclass(frozen=True)
class Reading:
    """The log-probabilities of one batch of requests.

    Parameters
    ----------
    prefill : for each request and position the log-probability of the recorded token
    prefill_top : for each of these positions the likeliest tokens and their log-probabilities
    decode : for each request the tokens that were generated after the recorded ones
    decode_top : for each of these steps the likeliest tokens and their log-probabilities
    """

    prefill: tuple[tuple[float, ...], ...]
    prefill_top: tuple[tuple[Top, ...], ...]
    decode: tuple[tuple[int, ...], ...]
    decode_top: tuple[tuple[Top, ...], ...]


@dataclass(frozen=True)
class Distance:
    """How far a reading is from the baseline.

    Parameters
    ----------
    largest : difference of a log-probability in nats; inf where one is not a number
    divergence : largest Kullback-Leibler divergence over the likeliest tokens of a position, in nats
    flips : positions whose likeliest token differs, with the margin by which the baseline chose it
    where : request and position of the largest difference
    """

    largest: float = 0.0
    divergence: float = 0.0
    flips: tuple[tuple[int, int, float], ...] = ()
    where: tuple[int, int] = field(default=(0, 0))

    @property
    def is_zero(self) -> bool:
        """Whether the two are equal bit for bit, as far as log-probabilities tell."""
        return self.largest == 0.0 and not self.flips

    def __str__(self) -> str:
        if self.is_zero:
            return "equal"
        flips = f", {len(self.flips)} likeliest tokens differ" if self.flips else ""
        return f"{self.largest:.3g} nats at most{flips}"


def reading(rows: list[dict[str, Any]]) -> Reading:
    """Take a reading from what ``Engine.generate`` returns."""
    about = [row["meta_info"] for row in rows]
    return Reading(
        prefill=tuple(
            tuple(_number(entry[0]) for entry in meta["input_token_logprobs"][1:]) for meta in about
        ),
        prefill_top=tuple(tuple(_top(entry) for entry in meta["input_top_logprobs"][1:]) for meta in about),
        decode=tuple(tuple(row["output_ids"]) for row in rows),
        decode_top=tuple(tuple(_top(entry) for entry in meta["output_top_logprobs"]) for meta in about),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _top(entries: list[Any] | None) -> Top:
    return {entry[1]: _number(entry[0]) for entry in entries or ()}


def distance(other: Reading, baseline: Reading) -> Distance:
    """Compare position by position; decode steps as far as the tokens agree."""
    largest, where, divergence, flips = 0.0, (0, 0), 0.0, []
    for request, positions in enumerate(baseline.prefill):
        steps = _agreed(other.decode[request], baseline.decode[request])
        tops = [
            *zip(other.prefill_top[request], baseline.prefill_top[request], strict=True),
            *list(zip(other.decode_top[request], baseline.decode_top[request], strict=True))[:steps],
        ]
        gaps = [_gap(x, y) for x, y in zip(other.prefill[request], positions, strict=True)]
        gaps += [_gap_of_tops(x, y) for x, y in tops[len(gaps) :]]
        for position, gap in enumerate(gaps):
            if gap > largest:
                largest, where = gap, (request, position)
        divergence = max([divergence, *(_divergence(x, y) for x, y in tops)])
        flips += [(request, at, _margin(y)) for at, (x, y) in enumerate(tops) if _first(x) != _first(y)]
    return Distance(largest, divergence, tuple(flips), where)


def _agreed(tokens: tuple[int, ...], others: tuple[int, ...]) -> int:
    """Return the number of decode steps that had the same tokens before them."""
    same = next((i for i, (x, y) in enumerate(zip(tokens, others, strict=False)) if x != y), len(tokens))
    return min(same + 1, len(tokens), len(others))


def _gap(one: float, other: float) -> float:
    if math.isnan(one) and math.isnan(other):
        return 0.0
    return math.inf if math.isnan(one) or math.isnan(other) else (0.0 if one == other else abs(one - other))


def _gap_of_tops(one: Top, other: Top) -> float:
    return max((_gap(one[token], other[token]) for token in one.keys() & other.keys()), default=0.0)


def _divergence(one: Top, other: Top) -> float:
    shared = [(other[token], one[token]) for token in one.keys() & other.keys()]
    terms = [math.exp(p) * (p - q) for p, q in shared if math.isfinite(p) and math.isfinite(q)]
    return max(0.0, sum(terms))


def _first(top: Top) -> int | None:
    return max(top, key=lambda token: top[token]) if top else None


def _margin(top: Top) -> float:
    """Return by how many nats the likeliest token leads."""
    best = sorted(top.values(), reverse=True)[:2]
    return best[0] - best[1] if len(best) == 2 else math.inf

"""Ratios with their errors, from repeated measurements. Nothing here runs anything."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Ratio", "error_of_median", "of_starts", "of_times", "together"]

#: What a ratio may be below 1 where its error is so large that it does not tell.
TOLERATED = 0.03
#: Standard errors that make up the error of a ratio: what is within it may be chance.
WIDTH = 2.0


@dataclass(frozen=True)
class Ratio:
    """How many times as fast something is as something else.

    Parameters
    ----------
    value : greater than 1 where it is faster
    error : what chance may make of it: two standard errors, or more where a control says so
    """

    value: float
    error: float

    @property
    def is_faster(self) -> bool:
        """Whether it is above 1 by more than its error."""
        return math.log(self.value) > self.relative_error

    @property
    def is_slower(self) -> bool:
        """Whether it is below 1 by more than its error."""
        return -math.log(self.value) > self.relative_error

    @property
    def may_be_slower(self) -> bool:
        """Whether it is below 1 by more than its error, or than is tolerated whatever the error is."""
        return -math.log(self.value) > min(self.relative_error, TOLERATED)

    @property
    def relative_error(self) -> float:
        """The error as a part of the value: twice as fast and half as fast are equally far from 1."""
        return self.error / self.value

    def __str__(self) -> str:
        return f"{_short(self.value)} ± {_short(self.error, 2)}"


def _short(number: float, digits: int = 3) -> str:
    return f"{number:.0f}" if 100 <= number < math.inf else f"{number:.{digits}g}"


def error_of_median(figures: Sequence[float]) -> float:
    """Return the standard error of a median: 1.25 times that of the mean, as for a normal distribution."""
    if len(figures) < 2:
        return math.inf
    return 1.25 * statistics.stdev(figures) / math.sqrt(len(figures))


def of_times(own: Sequence[float], other: Sequence[float]) -> Ratio:
    """Return how many times as fast ``other`` is as ``own``.

    Parameters
    ----------
    own, other : times of one call, measured in turn: those at one place belong together
    """
    pairs = [one / two for one, two in zip(own, other, strict=True)]
    return Ratio(statistics.median(pairs), WIDTH * error_of_median(pairs))


def together(ratios: Sequence[Ratio]) -> Ratio:
    """Return the geometric mean of ratios; each counts alike."""
    value = math.exp(statistics.fmean(math.log(ratio.value) for ratio in ratios))
    relative = math.hypot(*(ratio.relative_error for ratio in ratios)) / len(ratios)
    return Ratio(value, value * relative)


def of_starts(own: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> Ratio:
    """Return how many times as fast the engines of ``other`` are as those of ``own``.

    Starts of the same engine differ by more than repetitions in one start, so the error is the greater of
    what the repetitions and what the starts say.

    Parameters
    ----------
    own, other : for each start the throughputs of its repetitions; starts at one place belong together
    """
    value, repetitions = _medians(own, other)
    return Ratio(value, max(repetitions, _between(own, other)))


def _ratios(own: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(two) / statistics.median(one) for one, two in zip(own, other, strict=True)]


def _medians(own: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the mean ratio of the starts, and its error by the repetitions within them."""
    found = [
        Ratio(ratio, WIDTH * ratio * math.hypot(_relative_error(one), _relative_error(two)))
        for ratio, one, two in zip(_ratios(own, other), own, other, strict=True)
    ]
    mean = together(found)
    return mean.value, mean.error


def _relative_error(figures: Sequence[float]) -> float:
    return error_of_median(figures) / statistics.median(figures)


def _between(own: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """Return the error of the mean ratio by how the starts differ; 0 where there is one alone."""
    ratios = _ratios(own, other)
    return WIDTH * statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else 0.0

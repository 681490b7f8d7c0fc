"""Tables, ratios and sentences about them, as Markdown."""

import os
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.lookup import Table, told
from benchmarks.tables import Row

__all__ = [
    "MISSING",
    "Cell",
    "cell",
    "cells_of",
    "mean",
    "number",
    "ratio",
    "said",
    "source",
    "span",
    "summary",
    "table",
]

#: Of a line of a page.
WIDTH = 140
#: What stands where nothing was measured.
MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """A ratio above 1 where ours is faster.

    Parameters
    ----------
    ratio : of the other's time to ours
    where : op, shape or model, and size
    error : its standard error; 0 where none was taken
    """

    ratio: float
    where: str
    error: float = 0.0


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [f"| {' | '.join(cells)} |" for cells in [head, *rows]]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]]) + "\n"


def said(*sentences: str) -> str:
    """Return sentences as a paragraph. No line begins with a plus sign, which would begin a list."""
    text = " ".join(sentences).replace(" + ", "\0+\0")
    lines = textwrap.fill(text, width=WIDTH, break_on_hyphens=False, break_long_words=False)
    return lines.replace("\0", " ") + "\n"


def number(row: Row, column: str) -> float | None:
    """Return what stands in a column; None where it is empty, or the file has none of this name."""
    return float(row[column]) if row.get(column) else None


def ratio(row: Row, other: str, ours: str = "flagos (µs)") -> float | None:
    """Return the time in one column by that in another; None where one of them was not measured."""
    theirs, own = number(row, other), number(row, ours)
    return theirs / own if theirs is not None and own else None


def cell(value: float | None, digits: int = 3) -> str:
    """Return a ratio for a table, in bold below 1."""
    if value is None:
        return MISSING
    text = f"{value:.{digits}f}"
    return f"**{text}**" if value < 1 else text


def cells_of(rows: Iterable[Row], other: str = "sglang (µs)", unit: str = "tokens") -> list[Cell]:
    """Return the ratio of each row of ``bench_ops`` that has one."""
    found = []
    for row in rows:
        value = ratio(row, other)
        if value is not None:
            size = f"{row['tokens']} {unit if row['tokens'] != '1' else unit.removesuffix('s')}"
            found.append(Cell(value, f"{row['shape']}, {size}"))
    return found


def mean(cells: Sequence[Cell]) -> float | None:
    """Return the geometric mean; None of none."""
    return statistics.geometric_mean(one.ratio for one in cells) if cells else None


def summary(cells: Sequence[Cell]) -> str:
    """Say in words how cells stand: geometric mean, the least and where, how many are below 1."""
    if not cells:
        return "not measured"
    least = min(cells, key=lambda one: one.ratio)
    below = sum(one.ratio < 1 for one in cells)
    counted = {0: "none is", 1: "one is"}.get(below, f"{below} are")
    middle = f"**{mean(cells):.2f}** in the geometric mean of {len(cells)} cells"
    return f"{middle}, least {least.ratio:.3f} ({least.where}); {counted} below 1"


def span(values: Iterable[float | None], digits: int = 2, to: str = " to ") -> str:
    """Return the least and the greatest of some numbers."""
    known = [value for value in values if value is not None]
    if not known:
        return MISSING
    ends = dict.fromkeys(f"{value:,.{digits}f}" for value in (min(known), max(known)))
    return to.join(ends)


def source(tables: Iterable[Table | None]) -> str:
    """Say how tables were measured and where they lie; nothing of those that are missing."""
    there = [one for one in tables if one]
    if not there:
        return "Not measured yet.\n"
    return said(f"{told(there)}.", f"Data: {_files([one.path.name for one in there])}.")


def _files(names: Sequence[str]) -> str:
    """Return a link to one file, or in one word what several are called."""
    if len(names) == 1:
        return f"[{names[0]}](../benchmarks/results/{names[0]})"
    letters = os.path.commonprefix(names)  # noqa: RUF071 - of their letters, not of folders
    begin = letters[: letters.rfind("_") + 1]
    parts = ",".join(name.removeprefix(begin).removesuffix(".csv") for name in names)
    return f"`benchmarks/results/{begin}{{{parts}}}.csv`"

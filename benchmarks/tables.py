"""Tables of results as files."""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["Row", "commit_in", "read_about", "read_table", "write_table"]

#: A row of a file, by the names of the columns.
Row = dict[str, str]


def write_table(path: Path, about: str, head: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    """Write a table, after a line that says how it came about: command, device, commit, versions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {about}\n")
        csv.writer(file, lineterminator="\n").writerows([head, *rows])


def read_about(path: Path) -> str:
    """Return the line that says how a table came about."""
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("# ").rstrip("\n")


def read_table(path: Path) -> list[Row]:
    """Return the rows of a table."""
    with path.open(encoding="utf-8", newline="") as file:
        next(file)
        return list(csv.DictReader(file))


def commit_in(about: str) -> str | None:
    """Return the commit that such a line names; None where it names none."""
    found = re.search(r"\bcommit ([\w.-]+)", about)
    return found[1] if found else None

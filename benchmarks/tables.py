"""Tables of results as files."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["write_table"]


def write_table(path: Path, about: str, head: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    """Write a table, after a line that says how it came about: command, device, versions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        file.write(f"# {about}\n")
        csv.writer(file).writerows([head, *rows])

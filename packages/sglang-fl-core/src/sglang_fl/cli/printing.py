"""What the commands print: tables for people, JSON for programs, and errors as one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sglang_fl.errors import SettingsError, SglangFlError, printable, quoted
from sglang_fl.logs.json_text import json_text
from sglang_fl.logs.redaction import redacted
from sglang_fl.logs.shared_file import named_path
from sglang_fl.progress import Progress

__all__ = ["LOADING", "LOOKING", "exit_on_error", "named", "print_json", "print_rows", "say", "working"]

#: What a command begins with that lists, and one that runs something.
LOOKING, LOADING = "looking at what is installed", "loading PyTorch"
#: Columns of a table that is piped.
WIDE = 8192
#: So many rows are named in a line below a table; of more their number is told.
NAMED = 3


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the command with code 2 and one line where one of our errors is raised."""
    try:
        yield
    except SglangFlError as error:
        say(f"sglang-fl: {error}", err=True)
        raise typer.Exit(2) from None


@contextmanager
def working(what: str, doing: str, *, on_terminals_alone: bool = False) -> Iterator[Progress]:
    """Say what a command does while it takes its time, and end it as ``exit_on_error`` does."""
    with exit_on_error(), Progress(what, doing, on_terminals_alone=on_terminals_alone) as progress:
        yield progress


def say(text: str, *, err: bool = False) -> None:
    """Print a line without secrets, and without what would steer a terminal."""
    typer.echo(printable(redacted(text)), err=err)


def named(path: Path) -> Path:
    """Return a path as it was meant: a shell leaves the ``~`` of ``--folder=~/x`` as it is.

    Raises
    ------
    SettingsError : no file can have this name
    """
    try:
        return named_path(str(path))
    except ValueError as error:
        raise SettingsError(f"{quoted(str(path))}: {error}") from None


def print_json(data: Any) -> None:
    """Print JSON without secrets."""
    typer.echo(json_text(data))


def print_rows(
    rows: list[dict[str, Any]], as_json: bool, title: str, below: tuple[str, ...] = (), labels: int = 2
) -> None:
    """Print a table; the columns ``below`` hold lists of sentences, which follow it line by line.

    The first ``labels`` columns say which row a line is of; a sentence that is true of many is printed once.
    """
    rows, title = redacted(rows), redacted(title)
    if as_json:
        print_json(rows)
        return
    if not rows:
        say(title)
        return
    table = Table(title=printable(title), title_justify="left", show_lines=False)
    columns = [column for column in rows[0] if column not in below]
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(_cell(row[column]))) for column in columns))
    _console().print(table)
    for column in below:
        owners: dict[str, dict[str, None]] = {}  # an ordered set of labels for each sentence
        for row in rows:
            for sentence in row[column]:
                label = " ".join(str(row[name]) for name in columns[:labels])
                owners.setdefault(sentence, {})[label] = None
        for sentence, names in owners.items():
            of = ", ".join(names) if len(names) <= NAMED else f"{len(names)} rows of the table"
            say(f"{of}: {column.replace('_', ' ')}: {sentence}")


def _console() -> Console:
    """Return a console as wide as the terminal; where nobody looks, so wide that each row is one line."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value)
    return "" if value is None else str(value)

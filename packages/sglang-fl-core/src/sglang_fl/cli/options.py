"""What options of several commands share."""

from typing import Annotated

import typer

__all__ = ["Json", "within_a_day"]

#: The option of all commands that can answer programs.
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
MOST_SECONDS = 86400


def within_a_day(value: float) -> float:
    """Return a time limit in seconds.

    Raises
    ------
    typer.BadParameter : less than one, or more than a day
    """
    if not 1 <= value <= MOST_SECONDS:
        raise typer.BadParameter(f"{value:g} is not within 1 to {MOST_SECONDS} seconds")
    return value

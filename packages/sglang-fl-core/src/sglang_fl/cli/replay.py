"""``sglang-fl replay`` on the command line."""

from pathlib import Path
from typing import Annotated

import typer

from sglang_fl.cli.options import Json, within_a_day
from sglang_fl.cli.printing import named, print_rows, working

__all__ = ["replay"]


def replay(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The folder that SGLANG_FL_KEEP_CALLS named.")
    ],
    op: Annotated[str | None, typer.Option(metavar="OP", help="Only calls of this op.")] = None,
    seconds: Annotated[
        float, typer.Option(callback=within_a_day, metavar="N", help="Time limit of each call.")
    ] = 120,
    as_json: Json = False,
) -> None:
    """Run kept calls of kernels again, and compare with float64.

    Each call runs in a process of its own. Start the server with SGLANG_FL_KEEP_CALLS=FOLDER: a kernel that
    ends its process leaves its call there.

    Example: sglang-fl replay FOLDER --op rms_norm

    Exit code 0: all are right. 1: one is wrong, raises, hangs or ends its process. 2: cannot be read. 3: none
    was judged.
    """
    with working("replay", "reading the calls") as progress:
        from sglang_fl.diagnostics.replay import replay as run_again

        rows, code = run_again(named(folder), op, seconds, progress.step)
    print_rows(rows, as_json, "Kept calls, run again" if rows else f"no call of {op} is kept")
    raise typer.Exit(code)

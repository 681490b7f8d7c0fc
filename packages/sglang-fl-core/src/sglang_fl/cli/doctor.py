"""``sglang-fl doctor`` on the command line."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglang_fl.cli.options import Json, within_a_day
from sglang_fl.cli.printing import LOADING, named, print_rows, working
from sglang_fl.cli.sigterm import end_on_sigterm
from sglang_fl.errors import choices

if TYPE_CHECKING:
    from sglang_fl.diagnostics.doctor import Row

__all__ = ["doctor"]

#: The dtypes of SGLang's launch line.
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
LAUNCH = "As in SGLang's launch line."


def _dtype(value: str) -> str:
    if value not in DTYPES:
        raise typer.BadParameter(choices(value, DTYPES))
    return value


def doctor(
    model: Annotated[
        Path | None, typer.Option("--model", "--model-path", metavar="FOLDER", help="Folder of the model.")
    ] = None,
    tp: Annotated[int, typer.Option("--tp", "--tp-size", metavar="N", min=1, help=LAUNCH)] = 1,
    nnodes: Annotated[int, typer.Option(metavar="N", min=1, help=LAUNCH)] = 1,
    mem_fraction_static: Annotated[
        float | None, typer.Option(metavar="SHARE", min=0, max=1, help=LAUNCH)
    ] = None,
    dtype: Annotated[str, typer.Option(callback=_dtype, metavar="DTYPE", help=LAUNCH)] = "auto",
    port: Annotated[int | None, typer.Option(metavar="PORT", min=1, max=65535, help=LAUNCH)] = None,
    nccl_port: Annotated[int | None, typer.Option(metavar="PORT", min=1, max=65535, help=LAUNCH)] = None,
    dist_init_addr: Annotated[str | None, typer.Option(metavar="HOST:PORT", help=LAUNCH)] = None,
    probe_seconds: Annotated[
        float,
        typer.Option(
            callback=within_a_day, metavar="N", help="Time limit of the all-reduce over --tp ranks."
        ),
    ] = 60,
    only: Annotated[
        list[str] | None, typer.Option(metavar="CHECK", help="Only this check; may be given more than once.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What is wrong on this machine, and what to do.

    Example: sglang-fl doctor --model MODEL --tp 2

    Exit code 0: all is well. 1: a problem. 2: something could not be told, or was not looked at; also wrong
    arguments.
    """
    end_on_sigterm()
    with working("doctor", LOADING) as progress:
        from sglang_fl.diagnostics import doctor as health

        folder = named(model) if model else None
        launch = health.Launch(
            folder, tp, nnodes, mem_fraction_static, dtype, port, nccl_port, dist_init_addr, probe_seconds
        )
        found = health.examine(launch, only or (), progress.step)
        count = len({*only}) if only else len(health.CHECKS)
    rows = [{**vars(row.finding), "state": str(row.finding.state), "check": row.check} for row in found]
    columns = ("state", "what", "text", "remedy", "check")
    ordered = [{column: row[column] for column in columns} for row in rows]
    shown = ordered if as_json else [_without_check(row) for row in ordered]
    print_rows(shown, as_json, _summary(found, count))
    raise typer.Exit(health.exit_code(found))


def _summary(found: list["Row"], count: int) -> str:
    """Return the title of the table: how many checks ran, and how many findings are not well."""
    states = [str(row.finding.state) for row in found]
    problems, unknown = states.count("problem"), states.count("unknown")
    idle = count - len({row.check for row in found})
    checks = f"{count} check{'s' * (count != 1)}{f' ({idle} had nothing to look at)' if idle else ''}"
    told = ["no problem" if not problems else "1 problem" if problems == 1 else f"{problems} problems"]
    if unknown:
        told.append(f"{unknown} that could not be told")
    return f"Doctor: {checks}: {', '.join(told)}"


def _without_check(row: dict[str, Any]) -> dict[str, Any]:
    return {column: text for column, text in row.items() if column != "check"}

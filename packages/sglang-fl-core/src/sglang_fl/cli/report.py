"""``sglang-fl report`` on the command line."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sglang_fl.cli.options import Json
from sglang_fl.cli.printing import LOADING, named, print_json, print_rows, say, working

__all__ = ["report"]

Files = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="A file of the first run; may be given more than once."),
]
Against = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="A file of another run, to compare with.")
]


def report(
    dispatch: Files = None,
    aten: Files = None,
    against_dispatch: Against = None,
    against_aten: Against = None,
    issue: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write one new file for a bug report instead, without secrets."),
    ] = None,
    log: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="With --issue: a server's log, whose end is shown."),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --issue: what `sglang-fl verify --certificate` has written."),
    ] = None,
    as_json: Json = False,
) -> None:
    """What ran where, by a run's logs; or a file for a bug report.

    It reads dispatch logs and records of ATen ops, and says what differs between ranks and runs. With --issue
    FILE it writes versions, settings, vendors, ops, doctor and the ends of the logs into one file.

    Example: sglang-fl report --dispatch dispatch.log --aten aten.log

    Exit code 0: printed or written. 2: a file cannot be read or written, or is no such log.
    """
    if issue is not None:
        if against_dispatch or against_aten or as_json:
            raise typer.BadParameter("--issue takes --dispatch, --aten, --log and --certificate alone")
        _write_issue(issue, [*(dispatch or ()), *(aten or ()), *(log or ())], certificate)
        return
    if log or certificate:
        raise typer.BadParameter("--log and --certificate belong to --issue FILE")
    if not (dispatch or aten):
        raise typer.BadParameter("give a log: --dispatch FILE, --aten FILE, or both; or --issue FILE")
    from sglang_fl.diagnostics import logs

    with working("report", "reading the logs", on_terminals_alone=True):
        first = logs.read_log(map(named, dispatch or ()), map(named, aten or ()))
        other = logs.read_log(map(named, against_dispatch or ()), map(named, against_aten or ()))
    differences = logs.compared(first, other) if against_dispatch or against_aten else None
    foreign = first.foreign + other.foreign
    if as_json:
        answer = {"layer_classes": first.layer_classes(), "aten_ops": first.aten_ops()}
        answer |= {"kernel_plugins": first.kernel_plugins()}
        answer |= {"differences": differences or [], "no_log_lines": foreign}
        print_json(answer)
        return
    tables = {
        _titled("Layer classes", first.layer_classes()): first.layer_classes() if dispatch else None,
        "Run by kernel plugins of others": first.kernel_plugins() or None,
        _titled("Replaced ATen ops that were called", first.aten_ops()): first.aten_ops() if aten else None,
        "Differences" if differences else "The two runs do not differ.": differences,
        f"{len(foreign)} lines that are no log lines": foreign or None,
    }
    for title, rows in tables.items():
        if rows is not None:
            print_rows(rows, False, title)


def _write_issue(issue: Path, logs: list[Path], certificate: Path | None) -> None:
    with working("report", LOADING) as progress:
        from sglang_fl.diagnostics.issue import Attached, write_issue

        shown = named(certificate) if certificate else None
        write_issue(named(issue), Attached(tuple(map(named, logs)), shown), progress.step)
    say(f"{issue}: read it before you send it; paths and host names are in it")


def _titled(title: str, rows: list[dict[str, Any]]) -> str:
    disagree = [row["layer_class"] for row in rows if row.get("disagree")]
    if not rows:
        return f"{title}: no line"
    return f"{title}; ranks or instances disagree about {', '.join(disagree)}" if disagree else title

"""The command ``sglang-fl``: what runs where on this machine, and why."""

import json
import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sglang_fl import __version__
from sglang_fl.bisect.reproduction import manual_steps
from sglang_fl.bisect.verdict import Verdict
from sglang_fl.diagnostics import doctor as health
from sglang_fl.diagnostics import logs, report, verification
from sglang_fl.errors import SettingsError, SglangFlError
from sglang_fl.scaffold import write_package
from sglang_fl.settings import markdown_table

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which implementation runs each op of SGLang on this machine, and why.",
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sglang-fl-core {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)


@contextmanager
def _exit_on_error() -> Iterator[None]:
    try:
        yield
    except SglangFlError as error:
        typer.echo(f"sglang-fl: {error}", err=True)
        raise typer.Exit(2) from None


def _print(rows: list[dict[str, Any]], as_json: bool, title: str) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        typer.echo(title)
        return
    table = Table(title=title, title_justify="left", show_lines=False)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    Console().print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value)
    return "" if value is None else str(value)


@app.command()
def env(
    as_json: Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of docs/configure.md instead.")
    ] = False,
) -> None:
    """Each setting, its value, and where it came from."""
    if markdown:
        typer.echo(markdown_table())
        return
    with _exit_on_error():
        _print(report.env(), as_json, "Settings")


@app.command()
def vendors(as_json: Json = False) -> None:
    """The installed vendor packages; for those that are not available, the reason."""
    with _exit_on_error():
        _print(report.vendors(), as_json, "Vendors")


@app.command()
def ops(
    as_json: Json = False,
    aten: Annotated[
        bool, typer.Option("--aten", help="PyTorch's ATen ops (layer 1) instead of the fused ones.")
    ] = False,
) -> None:
    """What would run each op here, and what would follow if that failed."""
    with _exit_on_error():
        if aten:
            _print(report.aten_ops(), as_json, _aten_title())
        else:
            _print(report.ops(), as_json, "Ops")


def _aten_title() -> str:
    off = report.why_aten_is_off()
    return f"ATen ops: {off}" if off else "ATen ops that the vendor has kernels for"


@app.command()
def why(op: str, as_json: Json = False) -> None:
    """The candidates of OP in order, and why the other implementations are none."""
    with _exit_on_error():
        answer = report.why(op)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    on = answer["layer_2"] == "on"
    state = "on" if on else f"off, SGLang runs its own ({answer['layer_2']})"
    typer.echo(f"{answer['op']}: {answer['contract']}")
    typer.echo(f"vendor {answer['vendor']}; order {' | '.join(answer['order'])}; layer 2 {state}")
    _print(answer["candidates"], False, "Candidates, in order")
    for rows, title in ((answer["not"], "Not candidates"), (answer["quarantine"], "Quarantine")):
        if rows:
            _print(rows, False, title)


@app.command()
def coverage(as_json: Json = False) -> None:
    """Which of the installed SGLang's fused layers are dispatched, and its own paths past them."""
    with _exit_on_error():
from sglang_fl.bisect.reproduction import manual_steps
from sglang_fl.bisect.verdict import Verdict
from sglang_fl.diagnostics import doctor as health
from sglang_fl.diagnostics import logs, report, verification
from sglang_fl.errors import SettingsError, SglangFlError
from sglang_fl.scaffold import write_package

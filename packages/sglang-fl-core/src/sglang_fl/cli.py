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
from sglang_fl.bisect.reproduction import broken, manual_steps
from sglang_fl.bisect.verdict import Verdict
from sglang_fl.diagnostics import doctor as health
from sglang_fl.diagnostics import logs, report, verification
from sglang_fl.errors import SettingsError, SglangFlError
from sglang_fl.logs.redaction import redacted
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
        typer.echo(redacted(f"sglang-fl: {error}"), err=True)
        raise typer.Exit(2) from None


def _print_json(data: Any) -> None:
    typer.echo(json.dumps(redacted(data), indent=2))


def _print(rows: list[dict[str, Any]], as_json: bool, title: str, below: tuple[str, ...] = ()) -> None:
    """Print a table; the columns ``below`` hold lists of sentences, which follow it line by line.

    The first two columns say which row each line is of.
    """
    rows, title = redacted(rows), redacted(title)
    if as_json:
        _print_json(rows)
        return
    if not rows:
        typer.echo(title)
        return
    table = Table(title=title, title_justify="left", show_lines=False)
    columns = [column for column in rows[0] if column not in below]
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(row[column])) for column in columns))
    Console().print(table)
    for row in rows:
        for column in below:
            for sentence in row[column]:
                typer.echo(f"{row[columns[0]]} {row[columns[1]]}: {column.replace('_', ' ')}: {sentence}")


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
        _print_json(answer)
        return
    on = answer["layer_2"] == "on"
    state = "on" if on else f"off, SGLang runs its own ({answer['layer_2']})"
    typer.echo(f"{answer['op']}: {answer['contract']}")
    typer.echo(f"vendor {answer['vendor']}; order {' | '.join(answer['order'])}; layer 2 {state}")
    if answer["sglang_first"]:
        typer.echo(f"SGLang's own runs first: {answer['sglang_first']}")
    _print(answer["candidates"], False, "Candidates, in order")
    for rows, title in ((answer["not"], "Not candidates"), (answer["quarantine"], "Quarantine")):
        if rows:
            _print(rows, False, title)


@app.command()
def coverage(as_json: Json = False) -> None:
    """Which of the installed SGLang's fused layers are dispatched, and its own paths past them."""
    with _exit_on_error():
        found = report.coverage()
    if as_json:
        _print_json(found)
        return
    _print(found["layer_classes"], False, "Layer classes")
    typer.echo("Shortcuts of SGLang past them")
    for row in found["shortcuts"]:
        typer.echo(f"{row['shortcut']}: past {', '.join(row['past'])}, {row['releases']}")
        for key in ("where", "taken", "off_where_the_op_is_named"):
            typer.echo(f"    {key.replace('_', ' ')}: {row[key]}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bisect(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Folder of the checkpoint.")],
    prompt: Annotated[list[str] | None, typer.Option(help="A text; several may be given.")] = None,
    folder: Annotated[Path, typer.Option(help="For inputs, scripts and the verdict.")] = Path(
        "sglang-fl-bisect"
    ),
    plan: Annotated[bool, typer.Option("--plan", help="Print the manual commands instead.")] = False,
    as_json: Json = False,
) -> None:
    """Find the layer, op or ATen op that makes a model's numbers differ, in one start of the engine.

    What follows is passed on to SGLang's launch line (--tp 2 --device cpu ...). Exit code 0: nothing found,
    1: found, 2: set-up broken, 3: cannot decide.
    """
    if plan:
        typer.echo(redacted(manual_steps(model, shlex.join(context.args))), nl=False)
        return
    from sglang_fl.bisect import command

    try:
        verdict = command.bisect(
            model, prompt or [], context.args, folder, lambda step: typer.echo(redacted(step), err=True)
        )
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - SGLang ends a failed start in any way; it is the verdict
        verdict = broken(error, folder)
    if as_json:
        _print_json(verdict.as_json())
    else:
        _print_verdict(verdict)
    raise typer.Exit(int(verdict.outcome))


def _print_verdict(verdict: Verdict) -> None:
    typer.echo(redacted(f"{verdict.outcome.name.lower().replace('_', ' ')}: {verdict.summary}"))
    for culprit in verdict.culprits:
        rows = [{"": name.replace("_", " "), "what": value} for name, value in vars(culprit).items() if value]
        _print(rows, False, culprit.name)
    for limit in verdict.limits:
        typer.echo(redacted(limit))
    if verdict.uncalled:
        typer.echo(f"never called with these prompts, so not judged: {', '.join(verdict.uncalled)}")
    numbers = ", ".join(f"{name} {value:.3g}" for name, value in verdict.numbers.items())
    typer.echo(f"{numbers}. Inputs, versions and scripts: {verdict.folder}" if numbers else "")


@app.command()
def doctor(
    model: Annotated[
        Path | None, typer.Option("--model", "--model-path", help="Folder of the model.")
    ] = None,
    tp: Annotated[int, typer.Option("--tp", "--tp-size", min=1, help="As in the launch line.")] = 1,
    nnodes: Annotated[int, typer.Option(min=1, help="As in the launch line.")] = 1,
    mem_fraction_static: Annotated[
        float | None, typer.Option(min=0, max=1, help="As in the launch line.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="As in the launch line.")] = "auto",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="As in the launch line.")] = None,
    nccl_port: Annotated[int | None, typer.Option(min=1, max=65535, help="As in the launch line.")] = None,
    dist_init_addr: Annotated[str | None, typer.Option(help="As in the launch line.")] = None,
    probe_seconds: Annotated[float, typer.Option(help="Time limit of the all-reduce over --tp ranks.")] = 60,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this check; may be given more than once.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What is wrong on this machine, and what to do: exit code 0 well, 1 a problem, 2 cannot tell."""
    launch = health.Launch(
        model, tp, nnodes, mem_fraction_static, dtype, port, nccl_port, dist_init_addr, probe_seconds
    )
    with _exit_on_error():
        found = health.examine(launch, only or ())
    rows = [{**vars(row.finding), "state": str(row.finding.state), "check": row.check} for row in found]
    columns = ("state", "what", "text", "remedy", "check")
    ordered = [{column: row[column] for column in columns} for row in rows]
    _print(ordered if as_json else [_without_check(row) for row in ordered], as_json, _summary(found))
    raise typer.Exit(health.exit_code(found))


def _summary(found: list[health.Row]) -> str:
    """Return the title of the table: how many rows are not well."""
    states = [row.finding.state for row in found]
    problems, unknown = states.count(health.State.PROBLEM), states.count(health.State.UNKNOWN)
    return f"Doctor: {problems} to be changed, {unknown} that cannot be told, {len(found)} findings in all"


def _without_check(row: dict[str, Any]) -> dict[str, Any]:
    return {column: text for column, text in row.items() if column != "check"}


Files = Annotated[
    list[Path] | None, typer.Option(help="A file of the first run; may be given more than once.")
]
Against = Annotated[list[Path] | None, typer.Option(help="A file of another run, to compare with.")]


@app.command(name="report")
def report_logs(
    dispatch: Files = None,
    aten: Files = None,
    against_dispatch: Against = None,
    against_aten: Against = None,
    as_json: Json = False,
) -> None:
    """What ran where, from dispatch logs and records of ATen ops; what differs between ranks and runs."""
    if not (dispatch or aten):
        raise typer.BadParameter("give a log: --dispatch FILE, --aten FILE, or both")
    with _exit_on_error():
        log = logs.read_log(dispatch or (), aten or ())
        other = logs.read_log(against_dispatch or (), against_aten or ())
    has_other = bool(against_dispatch or against_aten)
    differences = logs.compared(log, other) if has_other else []
    foreign = log.foreign + other.foreign
    if as_json:
        answer = {"layer_classes": log.layer_classes(), "aten_ops": log.aten_ops()}
        answer |= {"differences": differences, "no_log_lines": foreign}
        _print_json(answer)
        return
    if dispatch:
        _print(log.layer_classes(), False, _titled("Layer classes", log.layer_classes()))
    if aten:
        _print(log.aten_ops(), False, _titled("Replaced ATen ops that were called", log.aten_ops()))
    if has_other:
        _print(differences, False, "Differences" if differences else "The two runs do not differ.")
    if foreign:
        _print(foreign, False, f"{len(foreign)} lines that are no log lines")


def _titled(title: str, rows: list[dict[str, Any]]) -> str:
    disagree = [row["layer_class"] for row in rows if row.get("disagree")]
    if not rows:
        return f"{title}: no line"
    return f"{title}; ranks or instances disagree about {', '.join(disagree)}" if disagree else title


@app.command()
def verify(
    op: Annotated[str | None, typer.Argument(help="One op alone.")] = None,
    as_json: Json = False,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="Write the result here, for --compare.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option("--compare", help="Compare the certificates of two machines.")
    ] = None,
    stress: Annotated[
        bool, typer.Option("--stress", help="Repeat each call 100 times on a device that is not quiet, too.")
    ] = False,
) -> None:
    """Hold every implementation of this machine's vendor against its contract; code 1 where one fails."""
    with _exit_on_error():
        if compare:
            rows, is_good = verification.compare(*compare)
        else:
            rows, is_good = verification.verify(op, certificate, stress)
    below = () if compare else ("faults", "not_checked")
    _print(rows, as_json, _verify_title(bool(compare), bool(rows)), below)
    if not is_good:
        raise typer.Exit(1)


def _verify_title(compared: bool, any_rows: bool) -> str:
    if not compared:
        return "Conformance"
    return "Differences" if any_rows else "The two machines agree in all"


@app.command("new-vendor")
def new_vendor(
    name: Annotated[str, typer.Argument(help="The vendor's name, in lower case.")],
    device_type: Annotated[str, typer.Option("--device-type", help="PyTorch's name of the device.")],
    source: Annotated[
        str | None, typer.Option("--from", help="flag_gems: list what FlagGems has for the chip too.")
    ] = None,
    into: Annotated[Path, typer.Option("--into", help="The folder to write the package in.")] = Path(),
) -> None:
    """Write the package of a new vendor, sglang-fl-NAME: it passes `sglang-fl verify` as it is."""
    folder = into / f"sglang-fl-{name}"
    with _exit_on_error():
        if source not in (None, "flag_gems"):
            raise SettingsError(f"--from {source!r}: valid is flag_gems")
        files = write_package(name, device_type, folder, with_flag_gems=source is not None)
    typer.echo(f"{folder}: {len(files)} files. Next: pip install -e {folder} && sglang-fl verify")

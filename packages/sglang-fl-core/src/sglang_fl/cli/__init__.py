"""The command ``sglang-fl``: what runs where on this machine, and why.

Each command imports what it needs when it runs: what only lists must not wait for PyTorch.
"""

import logging
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglang_fl import __version__
from sglang_fl.cli.bisect import bisect
from sglang_fl.cli.printing import Json, exit_on_error, named, print_json, print_rows, say, working
from sglang_fl.cli.tune import tune
from sglang_fl.cli.usage import Command, LaunchCommand
from sglang_fl.compare.command import compare
from sglang_fl.errors import SettingsError, choices
from sglang_fl.profiling.command import profile

if TYPE_CHECKING:
    from sglang_fl.diagnostics.doctor import Row

__all__ = ["app"]

app = typer.Typer(
    invoke_without_command=True,
    options_metavar="",
    subcommand_metavar="COMMAND [OPTIONS]",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # no boxes: the text of a help has the terminal's width, and its lines break there
    help="""Which implementation runs each op of SGLang on this machine, and why.

    Example: sglang-fl doctor

    Exit code 0: well. 1: a problem was found. 2: no answer; one line says why. 3: it cannot be decided. 130:
    Ctrl-C. The help of each command says more: sglang-fl COMMAND --help.
    """,
)

#: The dtypes of SGLang's launch line.
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
MOST_SECONDS = 86400
LAUNCH = "As in SGLang's launch line."
#: What a command begins with that lists, and one that runs something.
LOOKING, LOADING = "looking at what is installed", "loading PyTorch"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sglang-fl-core {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    if context.invoked_subcommand is None:
        from sglang_fl.diagnostics.first_step import first_step

        typer.echo(context.get_help())
        with working("sglang-fl", LOOKING, on_terminals_alone=True):
            first = first_step()
        say(first)


@app.command(cls=Command)
def env(
    as_json: Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of docs/configure.md instead.")
    ] = False,
) -> None:
    """Each setting, its value, and where it came from.

    Example: SGLANG_FL_PREFER=vendor sglang-fl env

    Exit code 0: printed. 2: a setting is wrong; one line says which.
    """
    if markdown:
        from sglang_fl.settings import markdown_table

        typer.echo(markdown_table())
        return
    from sglang_fl.diagnostics import report

    with working("env", LOOKING, on_terminals_alone=True):
        rows = report.env()
    print_rows(rows, as_json, "Settings")


@app.command(cls=Command)
def vendors(as_json: Json = False) -> None:
    """The installed vendor packages, and why one is not available.

    Example: sglang-fl vendors --json

    Exit code 0: printed. 2: a setting, or a package itself, is wrong; one line says which.
    """
    from sglang_fl.diagnostics import report

    with working("vendors", LOOKING, on_terminals_alone=True):
        rows = report.vendors()
    print_rows(rows, as_json, "Vendors")


@app.command(cls=Command)
def ops(
    as_json: Json = False,
    aten: Annotated[
        bool, typer.Option("--aten", help="PyTorch's ATen ops (layer 1) instead of the fused ones.")
    ] = False,
) -> None:
    """What would run each op here, and what next if that failed.

    Example: SGLANG_FL_PREFER=vendor sglang-fl ops

    Exit code 0: printed. 2: a setting or a package is wrong; one line says which.
    """
    from sglang_fl.diagnostics import report

    with working("ops", LOOKING, on_terminals_alone=True):
        off = report.why_aten_is_off() if aten else None
        rows = report.aten_ops() if aten else report.ops()
    if aten:
        title = f"ATen ops: {off}" if off else "ATen ops that the vendor has kernels for"
        print_rows(rows, as_json, title)
    else:
        print_rows(rows, as_json, "Ops", ("not_found",), labels=1)


@app.command(cls=Command)
def why(
    op: Annotated[str, typer.Argument(metavar="OP", help="An op, as `sglang-fl ops` names it: rms_norm.")],
    as_json: Json = False,
) -> None:
    """What would run OP, in which order, and why not the others.

    Example: sglang-fl why rms_norm

    Exit code 0: printed. 2: there is no such op, or a setting or a package is wrong.
    """
    from sglang_fl.diagnostics import report

    with working("why", LOOKING, on_terminals_alone=True):
        answer = report.why(op)
    if as_json:
        print_json(answer)
        return
    on = answer["layer_2"] == "on"
    state = "on" if on else f"off, SGLang runs its own ({answer['layer_2']})"
    say(f"{answer['op']}: {answer['contract']}")
    say(answer["signature"])
    say(f"vendor {answer['vendor']}; order {' | '.join(answer['order'])}; layer 2 {state}")
    if answer["sglang_first"]:
        say(f"SGLang's own runs first: {answer['sglang_first']}")
    print_rows(answer["candidates"], False, "Candidates, in order")
    for rows, title in ((answer["not"], "Not candidates"), (answer["quarantine"], "Quarantine")):
        if rows:
            print_rows(rows, False, title)


@app.command(cls=Command)
def coverage(as_json: Json = False) -> None:
    """SGLang's fused layers that are dispatched, and its shortcuts.

    A shortcut is a path of SGLang's past a layer: one kernel for several layers.

    Example: sglang-fl coverage --json

    Exit code 0: printed. 2: SGLang cannot be read, or a setting or a package is wrong.
    """
    from sglang_fl.diagnostics import report

    with working("coverage", "reading the layers of SGLang"):
        found = report.coverage()
    if as_json:
        print_json(found)
        return
    print_rows(found["layer_classes"], False, "Layer classes")
    say("Shortcuts of SGLang past them")
    for row in found["shortcuts"]:
        say(f"{row['shortcut']}: past {', '.join(row['past'])}, {row['releases']}")
        for key in ("where", "taken", "off_where_the_op_is_named", "wrong"):
            if row[key]:
                say(f"    {key.replace('_', ' ')}: {row[key]}")
    if found["kernel_plugins"]:
        print_rows(
            found["kernel_plugins"], False, "Kernel plugins of others; the dispatch log tells which ran"
        )


app.command(cls=LaunchCommand)(bisect)
app.command(cls=Command)(compare)
app.command(cls=LaunchCommand)(tune)
app.command(cls=LaunchCommand)(profile)


def end_on_sigterm() -> None:
    """Have SIGTERM end this process as Ctrl-C does: what it has started is ended first."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def _seconds(value: float) -> float:
    if not 1 <= value <= MOST_SECONDS:
        raise typer.BadParameter(f"{value:g} is not within 1 to {MOST_SECONDS} seconds")
    return value


def _dtype(value: str) -> str:
    if value not in DTYPES:
        raise typer.BadParameter(choices(value, DTYPES))
    return value


@app.command(cls=Command)
def replay(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The folder that SGLANG_FL_KEEP_CALLS named.")
    ],
    op: Annotated[str | None, typer.Option(metavar="OP", help="Only calls of this op.")] = None,
    seconds: Annotated[
        float, typer.Option(callback=_seconds, metavar="N", help="Time limit of each call.")
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


@app.command(cls=Command)
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
        typer.Option(callback=_seconds, metavar="N", help="Time limit of the all-reduce over --tp ranks."),
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
    print_rows(
        ordered if as_json else [_without_check(row) for row in ordered], as_json, _summary(found, count)
    )
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


Files = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE", help="A file of the first run; may be given more than once."),
]
Against = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="A file of another run, to compare with.")
]


@app.command(name="report", cls=Command)
def report_logs(
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


@app.command(cls=Command)
def verify(
    ops: Annotated[list[str] | None, typer.Argument(metavar="OP", help="Only these ops; else all.")] = None,
    as_json: Json = False,
    references: Annotated[
        bool, typer.Option("--references", help="Check core's references and no vendor's implementations.")
    ] = False,
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", metavar="FILE", help="Write the result here, for --compare."),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="FILE FILE", help="Compare the certificates of two machines."),
    ] = None,
    stress: Annotated[
        bool,
        typer.Option("--stress", help="Also repeat each call 100 times, with spoilt memory and cold caches."),
    ] = False,
) -> None:
    """Hold every implementation here against its contract.

    These are the implementations of this machine's vendor, and the references.

    Columns: "checked" names the aspects that were looked at: the op's cases, calls at the edge of its
    contract, the same call twice, calls in a graph. "graphs" is how many calls were captured in a graph and
    replayed. "host us" is the time of a small call on the host, in microseconds.

    Example: sglang-fl verify rms_norm silu_and_mul --certificate chip.json

    Exit code 0: all that is installed was looked at and passes. 1: an implementation fails, or the two
    certificates differ. 2: wrong settings or arguments. 3: nothing fails, but an installed vendor was not
    looked at, because its chip is not here; it is named above the table.
    """
    if compare and (ops or references or certificate or stress):
        raise typer.BadParameter("--compare reads two certificates and takes no OP and no option but --json")
    with working("verify", LOADING) as progress:
        from sglang_fl.diagnostics import verification

        differences = verification.compare(*map(named, compare)) if compare else None
        if differences is None:
            to = named(certificate) if certificate else None
            found = verification.verify(ops or (), to, references, stress, progress.step)
    if differences is not None:
        rows, is_equal = differences
        print_rows(rows, as_json, "Differences" if rows else "The two machines agree in all")
        raise typer.Exit(0 if is_equal else 1)
    if as_json:
        print_json({"not_verified": found.not_verified, "implementations": found.rows})
    else:
        for sentence in found.not_verified:
            say(f"not verified: {sentence}")
        print_rows(found.rows, False, "Conformance", ("faults", "not_checked"))
    raise typer.Exit(found.code)


@app.command("new-vendor", cls=Command)
def new_vendor(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The vendor's name, in lower case.")],
    device_type: Annotated[
        str, typer.Option("--device-type", metavar="TYPE", help="PyTorch's name of the device.")
    ],
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="SOURCE", help="flag_gems: list what FlagGems has for the chip too."),
    ] = None,
    into: Annotated[
        Path, typer.Option("--into", metavar="FOLDER", help="The folder to write the package in.")
    ] = Path(),
    as_json: Json = False,
) -> None:
    """Write the package of a new vendor, sglang-fl-NAME.

    It passes `sglang-fl verify` as it is: on the simulated chip, as long as there is none, by
    SGLANG_FL_SIMULATED=NAME sglang-fl verify.

    Example: sglang-fl new-vendor acme --device-type npu

    Exit code 0: written. 2: the name or the device cannot be one, or the folder exists or cannot be written.
    """
    from sglang_fl.scaffold import write_package

    with exit_on_error():
        folder = named(into) / f"sglang-fl-{name}"
        if source not in (None, "flag_gems"):
            raise SettingsError(f"--from {source!r}: valid is flag_gems")
        files = write_package(name, device_type, folder, with_flag_gems=source is not None)
    # Of one op: all of them take minutes, core's references included.
    verify = f"SGLANG_FL_SIMULATED={name} sglang-fl verify silu_and_mul"
    following = f"pip install -e {shlex.quote(str(folder))} && {verify}"
    if as_json:
        names = sorted(str(file.relative_to(folder)) for file in files)
        print_json({"folder": str(folder), "files": names, "next": following})
        return
    say(f"{folder}: {len(files)} files. What to change is listed in its README.md. Next:\n{following}")

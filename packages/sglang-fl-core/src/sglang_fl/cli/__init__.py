"""The command ``sglang-fl``: what runs where on this machine, and why.

Each command imports what it needs when it runs: what only lists must not wait for PyTorch.
"""

import logging
import sys
from typing import Annotated

import typer

from sglang_fl import __version__
from sglang_fl.cli.bisect import bisect
from sglang_fl.cli.doctor import doctor
from sglang_fl.cli.listing import coverage, env, ops, vendors, why
from sglang_fl.cli.new_vendor import new_vendor
from sglang_fl.cli.printing import LOOKING, say, working
from sglang_fl.cli.replay import replay
from sglang_fl.cli.report import report
from sglang_fl.cli.tune import tune
from sglang_fl.cli.usage import Command, LaunchCommand
from sglang_fl.cli.verify import verify
from sglang_fl.compare.command import compare
from sglang_fl.profiling.command import profile

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


app.command(cls=Command)(env)
app.command(cls=Command)(vendors)
app.command(cls=Command)(ops)
app.command(cls=Command)(why)
app.command(cls=Command)(coverage)
app.command(cls=LaunchCommand)(bisect)
app.command(cls=Command)(compare)
app.command(cls=LaunchCommand)(tune)
app.command(cls=LaunchCommand)(profile)
app.command(cls=Command)(replay)
app.command(cls=Command)(doctor)
app.command(cls=Command)(report)
app.command(cls=Command)(verify)
app.command("new-vendor", cls=Command)(new_vendor)

"""``sglang-fl tune`` on the command line."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sglang_fl.cli.options import Json
from sglang_fl.cli.printing import LOADING, named, print_json, print_rows, say, working
from sglang_fl.cli.sigterm import end_on_sigterm
from sglang_fl.logs.json_text import json_text
from sglang_fl.logs.shared_file import write_text

if TYPE_CHECKING:
    from sglang_fl.tune.text import Report

__all__ = ["tune"]


def tune(
    context: typer.Context,
    model: Annotated[str, typer.Option(metavar="FOLDER", help="Folder of the checkpoint.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The file to write, for SGLANG_FL_CONFIG.")
    ] = Path("sglang-fl-tuned.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite that file.")] = False,
    minutes: Annotated[
        float,
        typer.Option(metavar="N", min=1, max=1440, help="Time limit; what is not measured by then is named."),
    ] = 30,
    op: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OP", help="Only this op, or ATen op: aten::mul.Tensor; may be given more than once."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, max=10, help="Starts of each engine.")] = 2,
    kernels_only: Annotated[
        bool,
        typer.Option(
            "--kernels-only",
            help="Do not try SGLang's own path of each op, nor PyTorch's of all ATen ops: an engine each.",
        ),
    ] = False,
    folder: Annotated[
        Path, typer.Option(metavar="FOLDER", help="What was measured is kept in it, to go on from.")
    ] = Path("sglang-fl-tune"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure anew what an earlier run has measured.")
    ] = False,
    as_json: Json = False,
    json_file: Annotated[
        Path | None, typer.Option("--json-file", metavar="FILE", help="Write the JSON there, too.")
    ] = None,
    as_package_data: Annotated[
        bool, typer.Option("--as-package-data", help="Print the choices of a vendor package, too.")
    ] = False,
) -> None:
    """Measure what is exact and fastest for a model on this machine.

    The choice is written as a settings file. Each implementation is held against float64 at the calls that
    the model makes, and timed if it is right. What is faster is tried in the engine; what the engine does not
    confirm stays as it is. A run that was interrupted goes on when the same command is given again.

    Example: sglang-fl tune --model MODEL --minutes 60 --dtype bfloat16

    Exit code 0: the file is written; it may say that all stays as it is. 1: all stays as it is, and an op
    runs on a wrong kernel at present. 2: wrong input, or an engine does not start. 3: the minutes did not
    suffice to decide, or the model calls nothing that has a choice; the file says so.
    """
    if as_json and as_package_data:
        raise typer.BadParameter("--as-package-data prints beside the table, and --json prints none")
    end_on_sigterm()
    with working("tune", LOADING) as progress:
        from sglang_fl.tune.command import Asked, exit_code
        from sglang_fl.tune.command import tune as run

        asked = Asked(
            model=model and str(named(Path(model))),
            arguments=tuple(context.args),
            out=named(out),
            minutes=minutes,
            folder=named(folder),
            ops=tuple(op or ()),
            rounds=rounds,
            with_sglang=not kernels_only,
            is_forced=force,
            is_fresh=fresh,
            data=named(json_file) if json_file is not None else None,
        )
        report = run(asked, progress.say)
        if asked.data is not None:
            _write_json(report, asked.data)
    if as_json:
        from sglang_fl.tune.text import as_data

        print_json(as_data(report))
    else:
        _print(report, asked.out, as_package_data)
    raise typer.Exit(exit_code(report))


def _write_json(report: "Report", path: Path) -> None:
    from sglang_fl.errors import SettingsError
    from sglang_fl.tune.text import as_data

    try:
        write_text(path, json_text(as_data(report)) + "\n")
    except OSError as error:
        raise SettingsError(f"--json-file {str(path)!r}: {error.strerror or error}") from None


def _print(report: "Report", out: Path, as_package_data: bool) -> None:
    from sglang_fl.tune import text

    print_rows(text.as_rows(report), False, "Ops", ("others",), labels=1)
    if report.uncalled:
        say(text.about_uncalled(report))
    for line in report.unmeasured:
        say(f"not measured: {line}")
    say(report.conclusion)
    if as_package_data:
        say(text.as_package_data(report))
    say(f"{out} is written. To serve with it: SGLANG_FL_CONFIG={out} python -m sglang.launch_server ...")

"""``sglang-fl bisect`` on the command line."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sglang_fl.cli.options import Json
from sglang_fl.cli.printing import LOADING, named, print_json, print_rows, say, working

if TYPE_CHECKING:
    from sglang_fl.bisect.verdict import Verdict

__all__ = ["bisect"]


def bisect(
    context: typer.Context,
    model: Annotated[str, typer.Option(metavar="FOLDER", help="Folder of the checkpoint.")],
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A text; several may be given.")
    ] = None,
    folder: Annotated[
        Path, typer.Option(metavar="FOLDER", help="A new folder is made in it, for each run.")
    ] = Path("sglang-fl-bisect"),
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the commands to do the steps by hand instead.")
    ] = False,
    html: Annotated[
        bool, typer.Option("--html", help="Write the steps as a page into the run's folder, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find the layer or op that makes a model's numbers differ.

    It takes one start of the engine.

    Example: sglang-fl bisect --model MODEL --html --dtype float32

    Exit code 0: nothing found. 1: found. 2: the set-up is broken. 3: cannot decide.
    """
    if plan:
        if html:
            raise typer.BadParameter("--html is of a bisection, and --plan makes none")
        _print_plan(model, context.args, as_json)
        return
    from sglang_fl.bisect.reproduction import PAGE, broken, make_folder, with_page
    from sglang_fl.bisect.steps import Steps
    from sglang_fl.progress import Progress
    from sglang_fl.sglang_adapter.checkpoint import vocabulary_of
    from sglang_fl.sglang_adapter.terminal import terminal
    from sglang_fl.startup import configure

    run: Path | None = None
    with Progress("bisect", "loading SGLang", terminal()) as progress:
        steps = Steps(progress.say, progress.step)
        try:
            checkpoint = model and str(named(Path(model)))
            vocabulary_of(checkpoint)
            configure()  # a wrong setting would end the import of SGLang, and its line be no verdict
            run = make_folder(named(folder))
            from sglang_fl.bisect import command  # what is mistyped is said before it imports SGLang

            verdict = command.bisect(checkpoint, prompt or [], context.args, run, steps)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - SGLang ends a failed start in any way; it is the verdict
            verdict = broken(error, run, steps)
        if html and run is not None:
            verdict = with_page(verdict, run, " ".join([model, *context.args]))
    if as_json:
        print_json(verdict.as_json())
    else:
        _print_verdict(verdict)
        if html and run is not None:
            say(f"The steps as a page: {run / PAGE}")
    raise typer.Exit(int(verdict.outcome))


def _print_plan(model: str, arguments: Sequence[str], as_json: bool) -> None:
    with working("bisect", LOADING, on_terminals_alone=True):
        from sglang_fl.bisect.manual_steps import manual_steps
        from sglang_fl.sglang_adapter.checkpoint import vocabulary_of

        checkpoint = model and str(named(Path(model)))
        vocabulary_of(checkpoint)
        planned = manual_steps(checkpoint, arguments)
    if as_json:
        print_json([asdict(step) for step in planned])
    else:
        say("\n".join(map(str, planned)))


def _print_verdict(verdict: "Verdict") -> None:
    say(f"{verdict.outcome.name.lower().replace('_', ' ')}: {verdict.summary}")
    for culprit in verdict.culprits:
        rows = [{"": name.replace("_", " "), "what": value} for name, value in vars(culprit).items() if value]
        print_rows(rows, False, culprit.name)
    for limit in verdict.limits:
        say(limit)
    if verdict.uncalled:
        say(f"never called with these prompts, so not judged: {', '.join(verdict.uncalled)}")
    numbers = ", ".join(f"{name} {value:.3g}" for name, value in verdict.numbers.items())
    if verdict.folder:
        say(f"{numbers + '. ' if numbers else ''}Inputs, versions and scripts: {verdict.folder}")

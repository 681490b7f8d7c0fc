"""The command ``sglang-fl profile``: from a checkpoint to a table. It imports late what takes long."""

import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from sglang_fl.errors import SettingsError, SglangFlError, printable, quoted
from sglang_fl.logs.json_text import json_text
from sglang_fl.logs.redaction import redacted
from sglang_fl.logs.shared_file import named_path, write_text
from sglang_fl.profiling import procedure
from sglang_fl.profiling.engine import BROKEN, Asked
from sglang_fl.profiling.profile import Profile, Request
from sglang_fl.progress import Progress
from sglang_fl.settings.outputs import check_outputs
from sglang_fl.sglang_adapter.checkpoint import vocabulary_of
from sglang_fl.sglang_adapter.terminal import terminal

__all__ = ["profile"]

NOTHING_MEASURED = 3


def profile(
    context: typer.Context,
    model: Annotated[str, typer.Option(metavar="FOLDER", help="Folder of the checkpoint.")],
    prefill: Annotated[
        int, typer.Option(metavar="N", min=1, max=1_000_000, help="Tokens of each prompt.")
    ] = 256,
    batch: Annotated[int, typer.Option(metavar="N", min=1, max=4096, help="Requests at a time.")] = 4,
    decode: Annotated[int, typer.Option(metavar="N", min=1, max=1024, help="Decode steps.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    to_json: Annotated[
        Path | None, typer.Option("--json-file", metavar="FILE", help="Write the JSON there, too.")
    ] = None,
    to_html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with pictures, too.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep the traces and SGLang's log here; a new or empty folder."),
    ] = None,
) -> None:
    """What steps of a model spend their time on, and who ran it.

    It starts the engine, eagerly and without graphs, asks it for a small batch, and traces that: what ran on
    kernels of ours, by op and kind, what on SGLang's own layers, attention, collectives and copies, and what
    to port next.

    Example: sglang-fl profile --model MODEL --html profile.html --dtype bfloat16

    Exit code 0: there is a profile. 2: wrong arguments or settings, the engine does not start or ends, or a
    file cannot be written. 3: the engine ran, and there was no step to measure.
    """
    request = Request(batch, prefill, decode)
    try:
        with Progress("profile", "loading SGLang", terminal()) as progress:
            vocabulary = vocabulary_of(model)
            outputs = _outputs({"--json-file": to_json, "--html": to_html})
            asked = Asked(model, vocabulary, tuple(context.args), request)
            with _folder(folder) as name:
                found = procedure.profile_model(asked, Path(name), progress.say)
            _write(found, outputs)
    except SglangFlError as error:
        _print(f"sglang-fl: {' '.join(str(error).split())}", err=True)
        is_empty = isinstance(error, procedure.NoStepsError)
        raise typer.Exit(NOTHING_MEASURED if is_empty else BROKEN) from None
    if as_json:
        from sglang_fl.profiling.report import as_data

        typer.echo(json_text(as_data(found)))
    else:
        from sglang_fl.profiling.table import as_lines

        for line in as_lines(found):
            _print(line)
    for path in outputs.values():
        _print(f"Written: {path}", err=as_json)


def _outputs(given: Mapping[str, Path | None]) -> dict[str, Path]:
    """Return the files that are to be written, by their options."""
    found = {option: _named(option, path) for option, path in given.items() if path is not None}
    check_outputs(found)
    return found


def _named(option: str, path: Path) -> Path:
    try:
        return named_path(str(path))
    except ValueError as error:
        raise SettingsError(f"{option} {quoted(str(path))}: {error}") from None


def _folder(given: Path | None) -> AbstractContextManager[str]:
    """Return the folder for traces: the user's, or one that is gone at the end."""
    if given is None:
        return tempfile.TemporaryDirectory(prefix="sglang-fl-profile-")
    try:
        folder = named_path(str(given))
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        is_empty = not any(folder.iterdir())
    except ValueError as error:
        raise SettingsError(f"--folder {quoted(str(given))}: {error}") from None
    except OSError as error:
        raise SettingsError(f"--folder {quoted(str(given))}: {error.strerror or error}") from None
    if not is_empty:
        raise SettingsError(f"--folder {quoted(str(given))}: it is not empty. Name a new folder.")
    return nullcontext(str(folder))


def _write(found: Profile, outputs: dict[str, Path]) -> None:
    from sglang_fl.profiling.picture import as_page
    from sglang_fl.profiling.report import as_data

    texts = {
        "--json-file": lambda: json_text(as_data(found)) + "\n",
        "--html": lambda: redacted(as_page(found)),
    }
    for option, path in outputs.items():
        try:
            write_text(path, texts[option]())
        except OSError as error:
            raise SettingsError(f"{option} {quoted(str(path))}: {error.strerror or error}") from None


def _print(text: str, *, err: bool = False) -> None:
    typer.echo(printable(redacted(text)), err=err)

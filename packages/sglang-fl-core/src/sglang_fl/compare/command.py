"""The command ``sglang-fl compare``: from addresses to a verdict. It imports late what takes long."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sglang_fl.errors import SettingsError, SglangFlError, printable, quoted
from sglang_fl.logs.json_text import json_text
from sglang_fl.logs.redaction import redacted
from sglang_fl.logs.shared_file import named_path, open_for_reading
from sglang_fl.progress import Progress

if TYPE_CHECKING:
    from sglang_fl.compare.client import Server
    from sglang_fl.compare.procedure import Comparison

__all__ = ["compare"]

#: Prompts at most: each costs a server some ten requests.
MOST_PROMPTS = 64
MOST_SECONDS = 86400


def compare(
    url: Annotated[str, typer.Argument(metavar="URL", help="A SGLang server: http://HOST:PORT.")],
    other: Annotated[str | None, typer.Argument(metavar="OTHER", help="The one to compare it with.")] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Compare with transformers, in float32, on this checkpoint."),
    ] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="PyTorch's device for --model.")] = "cpu",
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A text; several may be given.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file with a text on each line.")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="For both servers, or given twice. Default: the variable SGLANG_FL_API_KEY."
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="N", help="Seconds to wait for an answer.")] = 120,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Does a server answer as another one, or transformers, does?

    Both are given the same tokens and asked for their log-probabilities: short and long prompts, alone and in
    a batch, with a cached prefix, and in decode steps. Each question is asked twice, one request at a time.
    Nothing is changed on a server.

    A class of requests differs where its largest difference is above what rounding may do in the servers'
    dtype (1 nat in bfloat16, 0.125 in float16, 0.001 in float32, 2 where quantised; "auto" counts as
    bfloat16), or its mean above a quarter of that; where a side differs from itself, above three times that
    as well.

    Example: sglang-fl compare http://new-chip:30000 http://gpu:30000

    Exit code 0: the same. 1: they differ. 2: a server cannot be reached, refuses, is no SGLang server, or
    serves another model. 3: cannot decide.
    """
    try:
        texts = _texts(prompt or [], prompts)
        with Progress("compare", "reading the addresses") as progress:
            result = _compared(url, other, model, device, texts, api_key or [], timeout, progress.step)
    except SglangFlError as error:
        if as_json:
            from sglang_fl.compare.report import failed

            typer.echo(json_text(failed(str(error))))
        else:
            typer.echo(printable(redacted(f"sglang-fl: {error}")), err=True)
        raise typer.Exit(2) from None
    from sglang_fl.compare.report import as_data, as_lines

    if as_json:
        typer.echo(json_text(as_data(result)))
    else:
        for line in as_lines(result):
            typer.echo(printable(redacted(line)))
    raise typer.Exit(int(result.judgement.outcome))


def _compared(
    url: str,
    other: str | None,
    model: str | None,
    device: str,
    texts: Sequence[str],
    keys: Sequence[str],
    timeout: float,
    say: Callable[[str], None],
) -> "Comparison":
    from sglang_fl.compare.checkpoint import Checkpoint
    from sglang_fl.compare.procedure import Side, compare_sides

    if (other is None) == (model is None):
        raise SettingsError("give a second URL, or --model FOLDER for transformers, and not both")
    if not 0 < timeout <= MOST_SECONDS:
        raise SettingsError(f"--timeout {timeout:g}: it must be above 0, and at most {MOST_SECONDS} seconds")
    first_key, second_key = _keys(keys)
    first = _server(url, first_key, timeout, say)
    second: Side
    if model is not None:
        first.about()  # loading a checkpoint takes longer
        second = Checkpoint(_path("--model", model), device)
    else:
        second = _server(str(other), second_key, timeout, say)
    return compare_sides((first, second), texts, say)


def _server(url: str, key: str | None, timeout: float, say: Callable[[str], None]) -> "Server":
    from sglang_fl.compare.client import Server, checked_address

    return Server(checked_address(url), key, timeout, say)


def _keys(given: Sequence[str]) -> tuple[str | None, str | None]:
    from sglang_fl.compare.client import checked_key
    from sglang_fl.settings import api_key

    if len(given) > 2:
        raise SettingsError("--api-key: at most two can be given, one for each server")
    keys = [checked_key(key) for key in given or filter(None, [api_key()])]
    return (keys[0], keys[-1]) if keys else (None, None)


def _texts(prompts: Sequence[str], file: Path | None) -> list[str]:
    texts = list(prompts)
    if file is not None:
        texts += _lines(_path("--prompts", str(file)))
        if not texts:
            raise SettingsError(f"--prompts {quoted(str(file))}: no line of it has a text")
    if len(texts) > MOST_PROMPTS:
        raise SettingsError(
            f"{len(texts)} prompts: at most {MOST_PROMPTS}, since each costs some ten requests"
        )
    return texts


def _lines(file: Path) -> list[str]:
    try:
        with open_for_reading(file) as opened:
            text = opened.read().decode()
    except OSError as error:
        raise SettingsError(f"--prompts {quoted(str(file))}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"--prompts {quoted(str(file))}: it is not UTF-8 at byte {error.start}") from None
    return [line for line in text.splitlines() if line.strip()]


def _path(option: str, text: str) -> Path:
    try:
        return named_path(text)
    except ValueError as error:
        raise SettingsError(f"{option} {quoted(text)}: {error}") from None

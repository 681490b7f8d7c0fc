"""What of ``docs/reference/cli.md`` is written from the command line itself."""

import inspect
import re
from typing import Any

import typer

from sglang_fl.cli import app
from sglang_fl.cli.usage import argument_rows, usage

__all__ = ["blocks"]


def blocks() -> dict[str, str]:
    """Return a section for each command, by the mark between which they stand."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {"commands": "\n".join(_section(name, command) for name, command in commands.items())}


def _section(name: str, command: Any) -> str:
    options = [param for param in command.params if param.param_type_name == "option"]
    words = [f"sglang-fl {name}", *usage(command)]
    parts = [f"## {name}", f"`{' '.join(words)}`", _sentences(command.help)]
    rows = [f"| `{word}` | {told} |" for word, told in argument_rows(command)]
    rows += [f"| `{_option(o)}` | {o.help}{_default(o)} |" for o in options]
    if rows:
        parts.append("\n".join(["| | |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _option(option: Any) -> str:
    value = "" if option.is_flag else f" {option.metavar}"
    return f"{', '.join(option.opts)}{value}"


def _default(option: Any) -> str:
    return "" if option.default in (None, False) else f" Default: `{option.default}`."


def _sentences(text: str) -> str:
    """Return a command's help; its example is code."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n"))
    return "\n\n".join(re.sub("^Example: (.*)", r"Example: `\1`", paragraph) for paragraph in paragraphs)

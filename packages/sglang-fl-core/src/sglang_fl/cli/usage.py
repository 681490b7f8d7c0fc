"""The help of each command: a usage line as a person would write it, and what its words stand for."""

import re
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from sglang_fl.errors import quoted

__all__ = ["Command", "LaunchCommand", "argument_rows", "usage"]

#: What a command passes on to SGLang, in its usage line, and what that is.
PASSED_ON = ("[SGLANG OPTIONS]", "As in SGLang's launch line: --tp 2 --dtype float32.")
#: How Typer tells a range, and how a person would.
_RANGES = ((r"(\S+)<=x<=([^;\]]+)", r"\1 to \2"), (r"x>=([^;\]]+)", r"\1 or more"))


class Command(TyperCommand):
    """A command of ``sglang-fl``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; an option's error shows what was given, which Typer leaves out."""
        words = list(args)  # it is emptied
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            given = _given(getattr(error, "param", None), words)
            if given is not None and (not given or given not in error.message):
                error.message = f"{quoted(given)}: {error.message}"
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words behind the command's name."""
        return usage(self)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and the options, each with what it is."""
        records = [param.get_help_record(ctx) for param in self.get_params(ctx) if not _is_argument(param)]
        options = [(name, _ranges(text)) for name, text in filter(None, records)]
        for title, rows in (("Arguments", argument_rows(self)), ("Options", options)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class LaunchCommand(Command):
    """One that passes to SGLang whatever it does not know."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.context_settings.update(allow_extra_args=True, ignore_unknown_options=True)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse, and refuse a file behind ``--json``, which would otherwise be passed to SGLang."""
        file = _behind_json(args)
        if file is not None:
            takes_file = any("--json-file" in param.opts for param in self.params)
            instead = (
                f"to write a file: --json-file {file}" if takes_file else f"to write a file: --json > {file}"
            )
            raise typer.BadParameter(f"--json takes no value, and {file!r} was given. It prints; {instead}")
        return super().parse_args(ctx, args)


def _given(param: Any, words: Sequence[str]) -> str | None:
    """Return what an option was given the last time, or None."""
    for index in range(len(words) - 1, -1, -1):
        option, equals, value = words[index].partition("=")
        if option in getattr(param, "opts", ()):
            return value if equals else "".join(words[index + 1 : index + 2])
    return None


def _behind_json(args: Sequence[str]) -> str | None:
    """Return the word that ``--json`` is followed by, where that is no option."""
    for word, following in zip(args, [*args, "-"][1:], strict=True):
        if word == "--json" and not following.startswith("-"):
            return following
        if word.startswith("--json="):
            return word.removeprefix("--json=")
    return None


def usage(command: Any) -> list[str]:
    """Return what is written behind a command's name: what it needs, then what it takes."""
    required = [param for param in command.params if not _is_argument(param) and param.required]
    words = [*map(_word, filter(_is_argument, command.params))]
    words += [f"{param.opts[0]} {param.metavar}" for param in required]
    passed_on = [PASSED_ON[0]] if isinstance(command, LaunchCommand) else []
    return [*words, "[OPTIONS]", *passed_on]


def argument_rows(command: Any) -> list[tuple[str, str]]:
    """Return each word of the usage line that is no option, and what it is."""
    rows = [(_word(param).strip("[]"), param.help or "") for param in filter(_is_argument, command.params)]
    name, told = PASSED_ON
    return [*rows, (name.strip("[]"), told)] if isinstance(command, LaunchCommand) else rows


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _word(argument: Any) -> str:
    name = f"{argument.metavar} ..." if argument.nargs != 1 else str(argument.metavar)
    return name if argument.required else f"[{name}]"


def _ranges(text: str) -> str:
    for pattern, told in _RANGES:
        text = re.sub(pattern, told, text)
    return text

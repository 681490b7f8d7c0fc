"""The help of each command of ``sglang-fl``, and what it says of options that were mistyped."""

import re

import pytest
from typer.main import get_command

from command_line import run
from sglang_fl.cli import app


@pytest.mark.parametrize("command", sorted(get_command(app).commands))
def test_each_commands_help_has_an_example_and_its_exit_codes(command: str):
    text = " ".join(run(command, "--help").stdout.split())
    assert f"sglang-fl {command}" in text.partition("Example: ")[2]
    assert "Exit code 0:" in text
    assert " 2: " in text.partition("Exit code 0:")[2]


@pytest.mark.parametrize("words", [(), *((command,) for command in get_command(app).commands)], ids=" ".join)
def test_help_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]):
    monkeypatch.setenv("COLUMNS", "80")
    usage, *lines = run(*words, "--help").stdout.splitlines()
    assert max(len(line) for line in (usage, *lines)) <= 80
    assert not [line for line in lines if line.endswith("...")], "cut off"


@pytest.mark.parametrize("command", sorted(get_command(app).commands))
def test_a_usage_line_has_only_words_that_the_help_explains(command: str):
    told = run(command, "--help").stdout
    usage = told.partition("\n\n")[0].partition(f" {command} ")[2]
    assert not re.search(r"[{}<>|]", usage)
    explained = "".join(re.findall(r"^  \S.*", told.partition("\n\n  Exit code")[2], re.MULTILINE))
    words = re.findall(r"[A-Z]+|--[a-z-]+", usage.replace("[OPTIONS]", ""))
    assert [word for word in words if word not in explained] == []


@pytest.mark.parametrize("command", ["bisect", "tune", "profile"])
@pytest.mark.parametrize("given", [("--json", "out.json"), ("--json=out.json",)], ids=" ".join)
def test_a_file_behind_json_is_not_passed_to_sglang(command: str, given: tuple[str, ...]):
    done = run(command, "--model", "no such model", *given, "--tp", "2")
    assert done.exit_code == 2
    instead = "--json > out.json" if command == "bisect" else "--json-file out.json"
    assert "--json takes no value, and 'out.json' was given." in done.stderr
    assert f"to write a file: {instead}" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("doctor", "--tp", "many"),
        ("doctor", "--tp-size=many"),
        ("doctor", "--port", ""),
        ("doctor", "--dtype", "many"),
        ("replay", "folder", "--seconds", "many"),
        ("profile", "--model", "model", "--batch", "many"),
        ("tune", "--model", "model", "--minutes", "many"),
    ],
    ids=" ".join,
)
def test_an_error_of_an_option_shows_what_was_given(words: tuple[str, ...]):
    done = run(*words)
    assert done.exit_code == 2
    given = "many" if "many" in " ".join(words) else ""
    assert f"'{given}'" in done.stderr.partition("Error: ")[2].partition(": ")[2]


@pytest.mark.parametrize("command", get_command(app).commands.values(), ids=lambda command: command.name)
def test_json_is_a_flag_of_each_command(command):
    (option,) = (param for param in command.params if "--json" in param.opts)
    assert option.is_flag


@pytest.mark.parametrize("command", get_command(app).commands.values(), ids=lambda command: command.name)
def test_an_option_says_what_it_takes(command):
    assert not [
        param.name for param in command.params if not (param.metavar or getattr(param, "is_flag", False))
    ]


def test_help_names_every_command():
    result = run("--help")
    assert result.exit_code == 0
    for command in ("env", "vendors", "ops", "why", "coverage", "doctor", "report"):
        assert command in result.stdout

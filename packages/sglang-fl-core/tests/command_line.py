"""Runs ``sglang-fl`` in this process."""

import json
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from sglang_fl.cli import app


def run(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def run_json(*words: str) -> Any:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def line_with(text: str, output: str) -> str:
    (line,) = (line for line in output.splitlines() if text in line)
    return line

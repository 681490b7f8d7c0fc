"""What ``sglang-fl`` alone says on a machine."""

import importlib.metadata
from typing import Any

import pytest
from typer.testing import CliRunner

from sglang_fl.cli import app
from sglang_fl.diagnostics import report
from sglang_fl.diagnostics.first_step import first_step


def rows(**chips: str | None) -> list[dict[str, Any]]:
    """Return what ``report.vendors`` would: the CPU, and chips with the reason why each is not used."""
    found = [("cpu", None), *chips.items()]
    return [
        {"vendor": name, "package": f"sglang-fl-{name} 0.1.0", "available": reason is None, "reason": reason}
        for name, reason in found
    ]


@pytest.mark.parametrize(
    ("chips", "lines"),
    [
        ({}, ["Here: the CPU, by plain PyTorch.", "For a chip install its package"]),
        ({"mlu": None}, ["Here: mlu, by sglang-fl-mlu 0.1.0."]),
        (
            {"mlu": "torch_mlu is not installed"},
            [
                "sglang-fl-mlu 0.1.0 is not used here: torch_mlu is not installed.",
                "Here: the CPU, by plain PyTorch.",
            ],
        ),
    ],
    ids=["core-alone", "a-chip", "a-package-without-its-chip"],
)
def test_what_is_there_comes_before_what_to_do(chips, lines, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "vendors", lambda: rows(**chips))
    said = first_step().splitlines()
    assert all(one.startswith(wanted) for one, wanted in zip(said, lines, strict=False)), said
    assert said[len(lines)] == "First:"
    assert max(map(len, said)) <= 80


def test_without_sglang_that_comes_first(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(report, "vendors", rows)
    assert first_step().endswith("First: install SGLang into this environment; then sglang-fl doctor.")


def test_the_command_alone_helps_and_says_it():
    done = CliRunner().invoke(app, [])
    assert done.exit_code == 0
    assert "Usage" in done.output
    assert "sglang-fl doctor    is anything wrong here" in done.output


def test_a_command_says_only_what_was_asked():
    assert "First:" not in CliRunner().invoke(app, ["vendors"]).output

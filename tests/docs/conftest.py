"""What the tests of the pages share, and the line at their end."""

from pathlib import Path

import pytest

from demo.tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that pages call ``MODEL``."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "model")


def pytest_terminal_summary(terminalreporter) -> None:
    """Say how many blocks of the pages were run, and of the others why not."""
    reports = [
        report
        for found in terminalreporter.stats.values()
        for report in found
        if getattr(report, "when", None) == "call"
    ]
    blocks = [pair[1] for report in reports for pair in report.user_properties if pair[0] == "block"]
    if not blocks:
        return
    for block in sorted(block for block in blocks if not block.endswith(": run")):
        terminalreporter.write_line(f"not run: {block}")
    was_run = sum(block.endswith(": run") for block in blocks)
    terminalreporter.write_line(f"{was_run} of {len(blocks)} blocks run")

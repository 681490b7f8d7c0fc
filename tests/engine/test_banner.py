"""The start-up banner, and that our log neither doubles nor goes silent under SGLang's own configuration."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.programs import Run, finish, server_for

pytestmark = pytest.mark.timeout(150)

#: What a process of SGLang does with plugins and logging, without the model.
START = """
import logging, types

from sglang.srt.plugins import load_plugins

load_plugins()
from sglang.srt.utils import configure_logger

for _ in range(2):  # two engines, one after the other
    configure_logger(types.SimpleNamespace(log_level="info"))
logging.getLogger("sglang_fl.dispatch.life").info("a line of ours")
"""


@pytest.fixture
def start(environment_of):
    def run(settings: dict[str, str]) -> list[str]:
        environment = environment_of(settings)
        done: Run = finish([sys.executable, "-c", START], environment, 120, server_for(environment))
        assert done.code == 0, done.output
        return done.output.splitlines()

    return run


def only(lines: list[str], text: str) -> str:
    found = [line for line in lines if text in line]
    assert len(found) == 1, lines
    return found[0]


def test_the_banner_tells_versions_vendor_layers_and_logs(start, tmp_path: Path):
    log = tmp_path / "dispatch.log"
    orders = "rms_norm=reference"
    lines = start({"SGLANG_FL_DISPATCH_LOG": str(log), "SGLANG_FL_PER_OP": orders})
    line = only(lines, "sglang-fl-core ")
    for part in (
        f"on SGLang {version('sglang')}, torch 2.",
        "vendor cpu",
        "layer 1 off (vendor cpu has no ATen kernels)",
        f"layer 2 on, logged in {log}",
        "SGLANG_FL_PER_OP='rms_norm=reference'",
    ):
        assert part in line
    assert line.startswith("[20")  # SGLang's format
    only(lines, "a line of ours")


def test_the_banner_tells_that_layers_are_off(start):
    lines = start({"SGLANG_FL_OOT_ENABLED": "0", "USE_FLAGGEMS": "0"})
    line = only(lines, "sglang-fl-core ")
    assert "layer 1 off (USE_FLAGGEMS=0" in line
    assert "layer 2 off (SGLANG_FL_OOT_ENABLED=0)" in line


def test_a_logging_configuration_does_not_silence_us(start, tmp_path: Path):
    """``dictConfig`` disables the loggers that are there already, unless told not to."""
    file = tmp_path / "logging.json"
    handler = {"class": "logging.StreamHandler", "formatter": "named"}
    configuration = {
        "version": 1,
        "formatters": {"named": {"format": "%(name)s: %(message)s"}},
        "handlers": {"out": handler},
        "root": {"level": "INFO", "handlers": ["out"]},
    }
    file.write_text(json.dumps(configuration))
    lines = start({"SGLANG_LOGGING_CONFIG_PATH": str(file)})
    assert only(lines, "sglang-fl-core ").startswith("sglang_fl.startup: ")
    assert only(lines, "a line of ours") == "sglang_fl.dispatch.life: a line of ours"

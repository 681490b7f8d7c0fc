"""Engines of ``sglang-fl tune`` as programs that are forked with SGLang loaded: they start in seconds.

The real ones are told what to do by their standard input and answer by their standard output. A forked
program has one descriptor for all that it prints, so these use named pipes.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from sglang_fl.diagnostics.doctor.foreign import child_environment
from tests.programs import ROOT, server_for

__all__ = ["PreloadedEngine", "start"]

_TAKE_PIPES = """
import os, sys
os.dup2(os.open({commands!r}, os.O_RDONLY), 0)
os.dup2(os.open({answers!r}, os.O_WRONLY), 1)
sys.stdin, sys.stdout = open(0), open(1, "w")
"""


class PreloadedEngine:
    """What ``sglang_fl.tune.engines`` needs of ``subprocess.Popen``."""

    def __init__(self, code: str, environment: Mapping[str, str], errors: IO[str]) -> None:
        folder = Path(tempfile.mkdtemp())
        commands, answers = folder / "commands", folder / "answers"
        for pipe in (commands, answers):
            os.mkfifo(pipe)
        taken = _TAKE_PIPES.format(commands=str(commands), answers=str(answers))
        command = ["python", "-c", f"{taken}\n{code}"]
        self._program = server_for(environment).start(command, errors.fileno(), environment, ROOT)
        self.pid = self._program.pid
        self.stdin = commands.open("w")
        self.stdout = answers.open()
        self.wait = self._program.wait
        self.poll = self._program.poll


def start(
    arguments: Sequence[str], extra: Mapping[str, str] | None, output: Any, errors: IO[str], commands: Any
) -> PreloadedEngine:
    """Start an engine in the place of ``sglang_fl.diagnostics.doctor.child.start``."""
    option, code = arguments
    assert option == "-c"
    return PreloadedEngine(code, child_environment(extra), errors)

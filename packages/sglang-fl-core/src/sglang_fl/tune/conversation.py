"""A process that is told what to do by lines, and answers each with a line of JSON."""

import json
import os
import selectors
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sglang_fl.errors import SglangFlError

__all__ = ["Conversation", "ProcessEndedError", "TooLongError"]


class ProcessEndedError(SglangFlError):
    """The process has ended without an answer.

    Parameters
    ----------
    code : its exit code, or the signal that has ended it, below 0
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"the process ended with code {code}")
        self.code = code


class TooLongError(SglangFlError):
    """The answer did not come in time."""


class Conversation:
    """Orders and answers.

    Parameters
    ----------
    process : its input and output are pipes
    """

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._read = b""

    def ask(self, order: Mapping[str, Any], seconds: float) -> Any:
        """Tell it something; return its answer.

        Raises
        ------
        ProcessEndedError, TooLongError : there is none
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the answer says that it has ended
            self._process.stdin.write(f"{json.dumps(order)}\n")
            self._process.stdin.flush()
        return self.answer(seconds)

    def answer(self, seconds: float) -> Any:
        """Return its next answer; as ``ask``."""
        while b"\n" not in self._read:
            self._read += self._more(seconds)
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def _more(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        number = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(number, selectors.EVENT_READ)
            if not selector.select(seconds):
                raise TooLongError(f"no answer within {seconds:.0f} s")
        text = os.read(number, 1 << 16)
        if not text:
            raise ProcessEndedError(self._process.wait())
        return text

    def close(self) -> None:
        """Let go of its pipes, once it has ended."""
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                stream and stream.close()

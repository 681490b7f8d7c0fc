"""Run the blocks of a page one after another, as a reader would who begins at its top."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from demo.server import Server, free_port, start
from tests.docs.blocks import Block
from tests.docs.output import missing

__all__ = ["Reader"]

#: Seconds for a block, and until a server is ready.
PATIENCE = 600
#: A model that nobody needs to download takes its place.
NAMED_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
_LAUNCH = re.compile(r"python -m sglang\.launch_server(?:\\\n|[^#\n])*")
#: A port and a small KV cache: other servers may run on this machine.
_MORE = "--port {port} --max-total-tokens 4096"


class Reader:
    """One who tries a page.

    A server stays up for the blocks below it, until the next one starts.

    Parameters
    ----------
    folder : where the blocks run
    environment : their variables
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._port = free_port()
        self._server: Server | None = None
        self._scripts: list[Path] = []

    def run(self, block: Block) -> None:
        """Run a block.

        Raises
        ------
        AssertionError : it ended with another exit code than the page says, or printed something else
        """
        code, printed = getattr(self, f"_{block.language}")(block)
        tail = "\n".join(printed.splitlines()[-40:])
        assert code == block.exit_code, f"exit code {code}, not {block.exit_code}:\n{tail}"
        line = missing(block.output, printed) if block.output else None
        assert line is None, f"not printed: {line}\nprinted was:\n{tail}"

    def stop(self) -> None:
        """End the server, if there is one."""
        if self._server:
            self._server.stop()
            self._server = None

    def _bash(self, block: Block) -> tuple[int, str]:
        code = block.code.replace(NAMED_MODEL, "tiny/model").replace("30000", str(self._port))
        code = code.replace("/tmp/", f"{self._folder}/")
        if not _LAUNCH.search(code):
            return self._command("bash", "-e", "-o", "pipefail", "-c", code)
        self.stop()
        more = _MORE.format(port=self._port)
        code = _LAUNCH.sub(lambda match: f"{match[0].rstrip()} {more} ", code)
        log = self._folder / f"server-{block.line}.log"
        with log.open("wb") as output:
            process = start(["bash", "-e", "-c", code], output, self._environment, self._folder)
        self._server = Server(process, f"http://127.0.0.1:{self._port}", log)
        self._server.wait_until_ready(PATIENCE, lambda passed: None)
        return 0, log.read_text(errors="replace")

    def _python(self, block: Block) -> tuple[int, str]:
        """Run it below the Python blocks above it, whose names it may use."""
        path = self._folder / f"block_{block.line}.py"
        path.write_text(block.code)
        self._scripts.append(path)
        run_all = (
            "import sys\nfor path in sys.argv[1:]: exec(compile(open(path).read(), path, 'exec'), globals())"
        )
        return self._command("python", "-c", run_all, *map(str, self._scripts))

    def _yaml(self, block: Block) -> tuple[int, str]:
        """Read it as the plugin does: what is YAML here is a file of settings."""
        (self._folder / "settings.yaml").write_text(block.code)
        return self._command("env", "SGLANG_FL_CONFIG=settings.yaml", "sglang-fl", "env")

    def _toml(self, block: Block) -> tuple[int, str]:
        (self._folder / "block.toml").write_text(block.code)
        return self._command("python", "-c", "import tomllib; tomllib.load(open('block.toml', 'rb'))")

    def _command(self, *command: str) -> tuple[int, str]:
        """Return exit code and output of a command; nothing that it has started outlives it."""
        process = subprocess.Popen(
            command,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            printed, _ = process.communicate(timeout=PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return process.returncode, printed

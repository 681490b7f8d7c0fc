"""Start the real engine or server with given settings, and what it is compared with."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # these tests are about the CPU, also where a GPU is
ROOT = Path(__file__).parents[2]
PROMPT = [5, 6, 7, 8, 9, 10]

#: Runs one engine in a process of its own: greedy tokens and log-probabilities as one JSON line.
_OFFLINE = """
import json, sys

def main():
    import sglang as sgl
    engine = sgl.Engine(model_path=sys.argv[1], skip_tokenizer_init=True, max_total_tokens=2048,
                        log_level="info", random_seed=1, **json.loads(sys.argv[3]))
    rows = engine.generate(input_ids=json.loads(sys.argv[2]), return_logprob=True, logprob_start_len=0,
                           sampling_params={"temperature": 0, "max_new_tokens": 8, "ignore_eos": True})
    meta = rows["meta_info"]
    print("RESULT " + json.dumps({
        "tokens": rows["output_ids"],
        "logprobs": [p for p, *_ in meta["input_token_logprobs"][1:] + meta["output_token_logprobs"]],
    }))
    engine.shutdown()

if __name__ == "__main__":
    main()
"""


def _publish_server_args() -> None:
    """Up to 0.5.18 some layers cannot be built before a configuration is published."""
    from sglang.srt import server_args

    if hasattr(server_args, "set_global_server_args_for_scheduler"):
        arguments = server_args.ServerArgs(model_path="dummy", device="cpu")
        server_args.set_global_server_args_for_scheduler(arguments)


_publish_server_args()  # before the test files are read: they build layers


@dataclass(frozen=True)
class Run:
    """How a process ended.

    Parameters
    ----------
    code : its exit code
    output : standard output and error
    result : the JSON object that it printed last, if any
    """

    code: int
    output: str
    result: dict | None


@pytest.fixture(scope="session")
def environment_of() -> Callable[[Mapping[str, str]], dict[str, str]]:
    """Return a function that adds settings to an environment free of ours."""

    def environment(settings: Mapping[str, str]) -> dict[str, str]:
        ours = ("SGLANG_", "USE_FLAGGEMS")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return {**clean, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **settings}

    return environment


@pytest.fixture(scope="session")
def run_offline(tiny_model: Path, tmp_path_factory, environment_of) -> Callable[..., Run]:
    """Return a function that generates with ``sgl.Engine`` under given settings and arguments."""
    script = tmp_path_factory.mktemp("offline") / "offline.py"
    script.write_text(_OFFLINE)

    def run(
        settings: Mapping[str, str], timeout: float = 240, model: Path = tiny_model, **engine: object
    ) -> Run:
        command = [sys.executable, str(script), str(model), json.dumps(PROMPT), json.dumps(engine)]
        return finish(command, environment_of(settings), timeout)

    return run


@pytest.fixture(scope="session")
def no_hook(run_offline) -> dict:
    """SGLang on our platform with no plugin at all: SGLANG_PLATFORM overrides SGLANG_PLUGINS there."""
    run = run_offline({"SGLANG_PLATFORM": "sglang_fl", "SGLANG_PLUGINS": "__none__"})
    assert run.code == 0, run.output[-3000:]
    return run.result


def finish(command: list[str], environment: dict[str, str], timeout: float) -> Run:
    """Run a process in a group of its own to its end."""
    done = subprocess.run(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        start_new_session=True,
    )
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return Run(done.returncode, done.stdout, json.loads(lines[-1]) if lines else None)


def processes_with(text: str) -> list[Path]:
    """Return the running processes whose command line contains ``text``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text in path.read_text(errors="replace"):
                found.append(path)
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    return found

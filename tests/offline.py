"""An engine that answers one prompt, under settings and arguments of a test."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.programs import Run, finish, server_for

PROMPT = [5, 6, 7, 8, 9, 10]

#: Runs one engine in a process of its own: greedy tokens and log-probabilities as one JSON line.
_OFFLINE = """
import json, sys

def main():
    import sglang as sgl
    engine = sgl.Engine(model_path=sys.argv[1], skip_tokenizer_init=True, max_total_tokens=2048,
                        log_level="info", random_seed=1, sleep_on_idle=True, **json.loads(sys.argv[3]))
    rows = engine.generate(input_ids=json.loads(sys.argv[2]), return_logprob=True, logprob_start_len=0,
                           sampling_params={"temperature": 0, "max_new_tokens": 8, "ignore_eos": True})
    meta = rows["meta_info"]
    engine.shutdown()
    print("RESULT " + json.dumps({
        "tokens": rows["output_ids"],
        "logprobs": [p for p, *_ in meta["input_token_logprobs"][1:] + meta["output_token_logprobs"]],
    }))

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="session")
def run_offline(tiny_model: Path, tmp_path_factory, environment_of) -> Callable[..., Run]:
    """Return a function that generates with ``sgl.Engine`` under given settings and arguments."""
    script = tmp_path_factory.mktemp("offline") / "offline.py"
    script.write_text(_OFFLINE)

    def generate(
        settings: Mapping[str, str], timeout: float = 240, model: Path = tiny_model, **engine: object
    ) -> Run:
        command = [sys.executable, str(script), str(model), json.dumps(PROMPT), json.dumps(engine)]
        environment = environment_of(settings)
        return finish(command, environment, timeout, server_for(environment))

    return generate

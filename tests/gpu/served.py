"""One engine on the GPU, in a process of its own: what it answers, and the lines of its dispatch log."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["GPU", "OURS", "VANILLA", "Answer", "run"]

GENERATE = Path(__file__).parents[1] / "engine" / "generate.py"
VANILLA = {"SGLANG_PLUGINS": "__none__"}
OURS = {"SGLANG_FL_STRICT": "1", "USE_FLAGGEMS": "0"}
GPU: dict[str, Any] = {
    "attention_backend": "triton",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "skip_tokenizer_init": True,
    "mem_fraction_static": 0.8,
    "max_total_tokens": 8192,
    "cuda_graph_max_bs_decode": 8,
    "dtype": "bfloat16",
    "random_seed": 1,
}
#: Of each prompt tokens and log-probabilities; the lines of the dispatch log.
Answer = tuple[list[dict[str, Any]], set[str]]


def run(
    name: str,
    model: Path,
    engine: Mapping[str, Any],
    settings: Mapping[str, str],
    prompts: Sequence[Sequence[int]],
    logs: Path,
) -> Answer:
    """Let an engine read prompts and answer each with a few tokens.

    Parameters
    ----------
    name : of the files in ``logs``
    model : the checkpoint
    engine : arguments of ``sgl.Engine``, beside ``GPU``
    settings : of the environment
    prompts : token ids
    """
    questions, dispatch = logs / f"{name}.json", logs / f"{name}.dispatch.log"
    asked = {"input_ids": prompts, "logprob_start_len": 0}
    everything = {
        "engine": {"model_path": str(model), **GPU, **engine},
        "prompts": asked,
        "followers": asked,
        "mistakes": [],
        "planted": "",
    }
    questions.write_text(json.dumps(everything))
    with (logs / f"{name}.log").open("w") as log:
        done = subprocess.run(
            [sys.executable, str(GENERATE), str(questions)],
            env={**os.environ, **settings, "SGLANG_FL_DISPATCH_LOG": str(dispatch)},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            timeout=500,
            start_new_session=True,
        )
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert results, Path(log.name).read_text(errors="replace")[-3000:]
    lines = dispatch.read_text().splitlines() if dispatch.exists() else []
    return json.loads(results[-1].removeprefix("RESULT "))["prompts"], set(lines)

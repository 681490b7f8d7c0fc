"""One engine in a process of its own, asked the same twice.

``python speculate.py QUESTIONS`` reads a JSON file and prints its answers as one line ``RESULT {...}``:

| key | holds |
|---|---|
| ``engine`` | arguments of ``sgl.Engine`` |
| ``prompts`` | token ids of requests that run in one batch |

The answers: ``first`` and ``again``, where the most probable tokens are taken, and ``drawn``, where they are
drawn at a temperature at which nothing but the most probable ones has a chance, beside one request that takes
these.
"""

import json
import sys
from pathlib import Path
from typing import Any

NEW_TOKENS = 40
GREEDY = {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True}
DRAWN = {**GREEDY, "temperature": 1e-4, "top_k": 20, "top_p": 0.9}


def ask(engine: Any, prompts: list[list[int]], sampling: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = engine.generate(input_ids=prompts, sampling_params=sampling, return_logprob=True)
    return [
        {
            "tokens": row["output_ids"],
            "logprobs": [logprob for logprob, *_ in row["meta_info"]["output_token_logprobs"]],
            "accepted": row["meta_info"].get("spec_accept_length"),
        }
        for row in rows
    ]


def main() -> None:
    """Start the engine and ask."""
    import sglang as sgl

    questions = json.loads(Path(sys.argv[1]).read_text())
    engine = sgl.Engine(
        skip_tokenizer_init=True,
        max_total_tokens=2048,
        dtype="float32",
        log_level="info",
        random_seed=1,
        sleep_on_idle=True,
        **questions["engine"],
    )
    prompts = questions["prompts"]
    answers = {name: ask(engine, prompts, [GREEDY] * len(prompts)) for name in ("first", "again")}
    answers["drawn"] = ask(engine, prompts, [GREEDY, *[DRAWN] * (len(prompts) - 1)])
    engine.shutdown()
    print("RESULT " + json.dumps(answers))


if __name__ == "__main__":
    main()

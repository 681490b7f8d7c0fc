"""One engine in a process of its own answers everything that the judge asks of a model.

``python generate.py QUESTIONS`` reads a JSON file and prints its answers as one line ``RESULT {...}``:

| key | holds |
|---|---|
| ``engine`` | arguments of ``sgl.Engine`` |
| ``prompts`` | arguments of ``Engine.generate`` for requests that run in one batch |
| ``followers`` | the same for requests that are sent after them and share prefixes with them |
| ``mistaken`` | with mistakes: the same for requests that are sent while one is planted |
| ``mistakes`` | names of mistakes in ops (``mistaken_vendor.py``), planted one after the other |
| ``planted`` | the folder in which a file with the mistake's name plants it |
| ``weights`` | optional: another checkpoint, whose weights the engine loads at last while it runs |
| ``others`` | with it: arguments of ``Engine.generate`` for requests to these weights |
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

NEW_TOKENS = 12


def ask(engine: Any, requests: dict[str, Any]) -> list[dict[str, Any]]:
    """Return tokens and log-probabilities of requests that run in one batch."""
    rows = engine.generate(
        **requests,
        return_logprob=True,
        sampling_params={"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True},
    )
    return [
        {
            "tokens": row["output_ids"],
            "prefill": [logprob for logprob, *_ in row["meta_info"]["input_token_logprobs"]],
            "decode": [logprob for logprob, *_ in row["meta_info"]["output_token_logprobs"]],
            "prompt_tokens": row["meta_info"]["prompt_tokens"],
            "cached_tokens": row["meta_info"]["cached_tokens"],
        }
        for row in rows
    ]


def forget(engine: Any) -> None:
    """Empty the cache of prefixes: SGLang refuses as long as it has not put its last batch away."""
    deadline = time.monotonic() + 30
    while not engine.flush_cache().success:
        if time.monotonic() > deadline:
            raise TimeoutError("the engine is not idle 30 s after its last answer")
        time.sleep(0.01)


def main() -> None:
    """Start the engine, ask, plant one mistake after the other, ask again."""
    import sglang as sgl

    questions = json.loads(Path(sys.argv[1]).read_text())
    engine = sgl.Engine(**questions["engine"])
    answers = {
        "prompts": ask(engine, questions["prompts"]),
        "followers": ask(engine, questions["followers"]),
        "mistakes": {},
    }
    for mistake in questions["mistakes"]:
        forget(engine)
        planted = Path(questions["planted"], mistake)
        planted.touch()
        answers["mistakes"][mistake] = ask(engine, questions["mistaken"])
        planted.unlink()
    forget(engine)
    answers["again"] = ask(engine, questions["prompts"])
    if "weights" in questions:
        forget(engine)  # SGLang empties it as it loads weights, and it does not wait
        done, message, *_ = engine.update_weights_from_disk(questions["weights"])
        assert done, message
        forget(engine)
        answers["weights"] = ask(engine, questions["others"])
    engine.shutdown()
    print("RESULT " + json.dumps(answers))


if __name__ == "__main__":
    main()

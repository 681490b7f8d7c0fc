"""An engine that runs what its standard input says, for ``sglang-fl tune``: a program of its own.

Each line of input is a workload as JSON, ``{"requests": 8, "prompt": 64, "new": 64}``; the answer is a line
with the seconds that it took. It ends with its input, so that it never outlives who has started it.
"""

import json
import random
import sys
import time
from collections.abc import Sequence
from typing import IO, Any

from sglang_fl.logs.own_output import own_output
from sglang_fl.sglang_adapter.offline import launched

__all__ = ["serve"]


def serve(arguments: Sequence[str], flags: Sequence[str], vocabulary: int) -> None:
    """Start an engine, and run workloads until the input ends.

    Parameters
    ----------
    arguments : of SGLang's launch line
    flags : further ones
    vocabulary : how many tokens there are; prompts are drawn from them
    """
    answers = own_output()
    begun = time.perf_counter()
    with launched([*arguments, *flags]) as engine:
        _tell(answers, time.perf_counter() - begun)
        draw = random.Random(7)
        for line in sys.stdin:
            _tell(answers, _run(engine, json.loads(line), draw, vocabulary))


def _tell(answers: IO[str], seconds: float) -> None:
    answers.write(f"{seconds:.9f}\n")
    answers.flush()


def _run(engine: Any, load: dict[str, int], draw: random.Random, vocabulary: int) -> float:
    prompts = [[draw.randrange(vocabulary) for _ in range(load["prompt"])] for _ in range(load["requests"])]
    sampling = {"temperature": 0, "max_new_tokens": load["new"], "ignore_eos": True}
    begun = time.perf_counter()
    engine.generate(input_ids=prompts, sampling_params=sampling)
    return time.perf_counter() - begun

"""From a model and launch arguments to a verdict in a folder."""

import random
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sglang_fl.bisect.bench import CALLS, METHOD
from sglang_fl.bisect.procedure import Bisection
from sglang_fl.bisect.reproduction import LOG, with_limit, write_report
from sglang_fl.bisect.steps import Asks, Steps
from sglang_fl.bisect.verdict import Verdict
from sglang_fl.settings import ask_for_bench
from sglang_fl.sglang_adapter.checkpoint import vocabulary_of
from sglang_fl.sglang_adapter.terminal import printing_to
from sglang_fl.startup import configure

__all__ = ["bisect"]

#: Lengths of the prompts that are made up where the user gives none.
LENGTHS = (5, 17, 33, 64)


def bisect(
    model: str,
    prompts: Sequence[str],
    arguments: Sequence[str],
    folder: Path,
    steps: Steps,
) -> Verdict:
    """Start an engine and find the op that makes its numbers differ.

    Parameters
    ----------
    model : a checkpoint's folder
    prompts : texts; without any, random tokens of the model's vocabulary
    arguments : of SGLang's launch line, beside the model
    folder : for inputs, scripts and the verdict; an empty one
    steps : to which each step is added, so that they are known where this raises

    Raises
    ------
    SettingsError : the settings are wrong, as a start would say; there is no such checkpoint
    """
    vocabulary = vocabulary_of(model)
    made_up = [] if prompts else _made_up(vocabulary)
    ask_for_bench(folder.resolve())
    configuration = configure()
    from sglang_fl.sglang_adapter.offline import offline_engine

    line = ["--model-path", model, *arguments]
    log = folder / LOG
    steps.say(f"starting the engine; SGLang's log: {log}")
    steps.say(f"if a kernel ends it: sglang-fl replay {folder / CALLS}")
    try:
        with printing_to(log), ExitStack() as engines:
            with steps.step(Asks.START, "starting the engine") as step:
                engine = engines.enter_context(offline_engine(line, folder))
                step.told("it runs")
            tokens = [engine.encode(text) for text in prompts] or made_up
            verdict = Bisection(engine, METHOD, tokens, steps).run()
        shutil.rmtree(folder / CALLS, ignore_errors=True)  # large, and for a bisection without a verdict
    finally:
        for answer in folder.glob("*.rank*.json"):  # between processes, so with all that a secret may be in
            answer.unlink()
    verdict = replace(verdict, folder=str(folder))
    try:
        write_report(verdict, folder, configuration.registry.vendor.device_type)
    except OSError as error:  # what was found counts all the same
        return with_limit(verdict, f"{folder} cannot be written: {error.strerror or error}")
    return verdict


def _made_up(vocabulary: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(vocabulary) for _ in range(length)] for length in LENGTHS]

"""From a model and launch arguments to a verdict in a folder."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sglang_fl.bisect.bench import METHOD
from sglang_fl.bisect.procedure import Bisection
from sglang_fl.bisect.reproduction import make_folder, write_report
from sglang_fl.bisect.verdict import Verdict
from sglang_fl.settings import ask_for_bench
from sglang_fl.startup import configure

__all__ = ["bisect"]

#: What an earlier run may have left in the folder.
OURS = (
    *("step.rank*.json", "units.rank*.json", "planted.rank*.json", "findings.rank*.json"),
    *(
        "violation-*.rank*.pt",
        "fault-*.rank*.pt",
        "reproduce-*.py",
        "verdict.json",
        "versions.json",
        "error.txt",
    ),
)
#: Lengths of the prompts that are made up where the user gives none.
LENGTHS = (5, 17, 33, 64)


def bisect(
    model: str,
    prompts: Sequence[str],
    arguments: Sequence[str],
    folder: Path,
    say: Callable[[str], None],
) -> Verdict:
    """Start an engine and find the op that makes its numbers differ.

    Parameters
    ----------
    model : a checkpoint's folder
    prompts : texts; without any, random tokens of the model's vocabulary
    arguments : of SGLang's launch line, beside the model
    folder : for inputs, scripts and the verdict; made if missing
    say : told of each step

    Raises
    ------
    SettingsError : the settings are wrong, as a start would say
    """
    make_folder(folder)
    for pattern in OURS:
        for stale in folder.glob(pattern):
            stale.unlink()
    ask_for_bench(folder.resolve())
    configuration = configure()
    from sglang_fl.sglang_adapter.offline import offline_engine

    line = ["--model-path", model, *arguments]
    say("starting the engine")
    with offline_engine(line, folder) as engine:
        tokens = [engine.encode(text) for text in prompts] or _made_up(model)
        verdict = Bisection(engine, METHOD, tokens, say).run()
    verdict = replace(verdict, folder=str(folder))
    write_report(verdict, folder, configuration.registry.vendor.device_type)
    return verdict


def _made_up(model: str) -> list[list[int]]:
    config = json.loads((Path(model) / "config.json").read_text())
    vocabulary = config.get("vocab_size") or config["text_config"]["vocab_size"]
    draw = random.Random(0)
    return [[draw.randrange(vocabulary) for _ in range(length)] for length in LENGTHS]

"""From a model and launch arguments to a verdict in a folder."""

import json
import random
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sglang_fl.bisect.bench import METHOD
from sglang_fl.bisect.procedure import Bisection
from sglang_fl.bisect.reproduction import write_report
from sglang_fl.bisect.verdict import Outcome, Verdict
from sglang_fl.settings import ask_for_bench
from sglang_fl.startup import configure

__all__ = ["bisect", "broken"]

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
    folder.mkdir(parents=True, exist_ok=True)
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


def broken(error: BaseException, folder: Path) -> Verdict:
    """Return the verdict that there is none: the set-up is broken. What was raised is in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").write_text("".join(traceback.format_exception(error)))
    verdict = Verdict(Outcome.SET_UP_BROKEN, f"{type(error).__name__}: {error}", folder=str(folder))
    (folder / "verdict.json").write_text(json.dumps(verdict.as_json(), indent=2) + "\n")
    return verdict

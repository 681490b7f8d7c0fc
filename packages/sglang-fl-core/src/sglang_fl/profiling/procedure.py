"""From a model and launch arguments to a profile: one start of the engine, the same requests twice.

The first time nothing is measured: kernels are compiled, and layers decide what runs them.
"""

import random
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from sglang_fl.profiling.profile import Profile, Request
from sglang_fl.profiling.recorder import METHOD
from sglang_fl.profiling.shares import phases_of
from sglang_fl.profiling.steps import Steps, steps_of
from sglang_fl.profiling.trace import read_trace
from sglang_fl.settings import ask_for_profile
from sglang_fl.sglang_adapter.layers import ADAPTERS
from sglang_fl.sglang_adapter.offline import OfflineEngine, offline_engine
from sglang_fl.sglang_adapter.terminal import printing_to
from sglang_fl.startup import configure

__all__ = ["LOG", "NoStepsError", "profile_model"]

#: What SGLang prints goes here, in the folder of the traces.
LOG = "engine.log"


class NoStepsError(Exception):
    """The engine ran, and the traces hold no step in which anything ran."""


def profile_model(
    model: str,
    vocabulary: int,
    arguments: Sequence[str],
    request: Request,
    folder: Path,
    say: Callable[[str], None],
) -> Profile:
    """Start an engine and measure what its steps spend their time on.

    Parameters
    ----------
    model : a checkpoint's folder
    vocabulary : its tokens
    arguments : of SGLang's launch line, beside the model
    request : what to ask for
    folder : for traces and SGLang's log; an empty one
    say : called with each step

    Raises
    ------
    SettingsError : the settings are wrong, as a start would say
    NoStepsError : there is nothing to measure in the traces
    Exception : what SGLang raises
    """
    ask_for_profile(folder.resolve())
    configure()
    line = ["--model-path", model, *arguments]
    say("starting the engine")
    with printing_to(folder / LOG), offline_engine(line, folder) as engine:
        say("the same requests once before, unmeasured")
        _ask(engine, vocabulary, request)
        engine.call(METHOD, "start")
        say(f"{request.batch} requests of {request.prefill} tokens, {request.decode} decode steps")
        _ask(engine, vocabulary, request)
        say("writing the traces")
        engine.call(METHOD, "stop")
        (about, *_) = engine.answers("about")
    say("reading the traces")
    return _profile(model, tuple(arguments), request, _ranks(folder), about)


def _ask(engine: OfflineEngine, vocabulary: int, request: Request) -> None:
    draw = random.Random(0)
    prompts = [[draw.randrange(vocabulary) for _ in range(request.prefill)] for _ in range(request.batch)]
    engine.generate(prompts, request.decode + 1, logprobs=False)  # the first token is the prompt's


def _ranks(folder: Path) -> list[Steps]:
    """Return what the trace of each rank says."""
    return [steps_of(read_trace(path)) for path in sorted(folder.glob("trace.rank*.json"))]


def _profile(
    model: str, arguments: tuple[str, ...], request: Request, ranks: list[Steps], about: dict[str, Any]
) -> Profile:
    ranks = [_where_something_ran(rank) for rank in ranks]
    if not any(rank.steps for rank in ranks):
        raise NoStepsError("the traces hold no step in which anything ran")
    return Profile(
        model,
        arguments,
        request,
        software={
            "SGLang": metadata.version("sglang"),
            "torch": about["torch"],
            "sglang-fl-core": metadata.version("sglang-fl-core"),
        },
        device=about["device"],
        device_type=about["device_type"],
        ranks=len(ranks),
        is_device=any(rank.is_device for rank in ranks),
        phases=phases_of(ranks),
        outside_us=sum(rank.outside for rank in ranks),
        our_ops=_our_ops(),
    )


def _where_something_ran(rank: Steps) -> Steps:
    return Steps(tuple(step for step in rank.steps if step.stretches), rank.is_device, rank.outside)


def _our_ops() -> dict[str, str]:
    """Return the op of ours for each layer class that an adapter covers as a whole."""
    paths = [(adapter.layer_class, adapter.op.name) for group in ADAPTERS.values() for adapter in group]
    classes = {path.rpartition(":")[2]: op for path, op in paths}
    return {name: op for name, op in classes.items() if "." not in name}

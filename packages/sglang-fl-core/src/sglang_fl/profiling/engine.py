"""The process that runs the engine: SGLang ends it by force where a rank of it fails.

It is given a folder with what to ask, and leaves traces there, or the reason why there are none. What SGLang
prints goes to its log; steps go to a pipe of whoever has started it. It leads a group of its own, and ends
with the one that has started it, in whichever way that ends.
"""

import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sglang_fl.errors import SglangFlError
from sglang_fl.profiling.profile import Request

__all__ = ["ABOUT", "ASKED", "BROKEN", "FAILED", "Asked", "main", "run_engine"]

#: Files in the folder: what to ask; what it is that has run; why nothing was measured.
ASKED, ABOUT, FAILED = "asked.json", "about.json", "failed.json"
BROKEN, INTERRUPTED = 2, 130


@dataclass(frozen=True)
class Asked:
    """What the process is to do.

    Parameters
    ----------
    model : a checkpoint's folder
    vocabulary : its tokens
    arguments : of SGLang's launch line, beside the model
    request : what to ask the engine for
    """

    model: str
    vocabulary: int
    arguments: tuple[str, ...]
    request: Request

    def write(self, folder: Path) -> None:
        """Leave it for the process."""
        (folder / ASKED).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> "Asked":
        """Return what was left."""
        given = json.loads((folder / ASKED).read_text())
        return cls(
            **{**given, "arguments": tuple(given["arguments"]), "request": Request(**given["request"])}
        )


def main() -> None:
    """Run ``python -m sglang_fl.profiling.engine FOLDER PIPE``; never returns."""
    folder, pipe = Path(sys.argv[1]), os.fdopen(int(sys.argv[2]), "w")
    os.set_inheritable(pipe.fileno(), False)  # whoever reads must not wait for SGLang's processes

    def say(step: str) -> None:
        pipe.write(f"{step}\n")
        pipe.flush()

    threading.Thread(target=_end_with_starter, daemon=True).start()
    raise SystemExit(_ended(folder, say))


def _end_with_starter() -> None:
    """Wait for the end of standard input, which whoever has started this process holds open."""
    os.read(0, 1)  # not by ``sys.stdin``, whose lock Python wants at its own end
    os.killpg(0, signal.SIGKILL)


def _ended(folder: Path, say: Callable[[str], None]) -> int:
    """Run the engine and return the exit code, with the reason in a file where it is not 0."""
    try:
        run_engine(Asked.read(folder), folder, say)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SglangFlError as error:
        reason = str(error)
    except SystemExit as ended:  # SGLang's parser of arguments has printed why
        reason = "" if ended.code else f"SGLang ended it: {ended!r}"
    except Exception as error:  # noqa: BLE001 - SGLang and its libraries raise anything; it is said
        reason = f"{type(error).__name__}: {error}"
    else:
        return 0
    (folder / FAILED).write_text(json.dumps({"reason": reason}))
    return BROKEN


def run_engine(asked: Asked, folder: Path, say: Callable[[str], None]) -> None:
    """Start an engine, ask it for the same twice, and have the second time traced.

    The first time nothing is measured: kernels are compiled, and layers decide what runs them.

    Parameters
    ----------
    asked : of which model, and what
    folder : for traces
    say : called with each step

    Raises
    ------
    SettingsError : the settings are wrong, as a start would say
    Exception : what SGLang raises
    """
    from sglang_fl.profiling.recorder import METHOD
    from sglang_fl.settings import ask_for_profile
    from sglang_fl.sglang_adapter.offline import offline_engine
    from sglang_fl.startup import configure

    ask_for_profile(folder.resolve())
    configure()
    request = asked.request
    prompts = _prompts(asked.vocabulary, request)
    say("starting the engine")
    with offline_engine(["--model-path", asked.model, *asked.arguments], folder) as engine:
        say("the same requests once before, unmeasured")
        engine.generate(prompts, request.decode + 1, logprobs=False)  # the first token is the prompt's
        engine.call(METHOD, "start")
        say(f"{request.batch} requests of {request.prefill} tokens, {request.decode} decode steps")
        engine.generate(prompts, request.decode + 1, logprobs=False)
        say("writing the traces")
        engine.call(METHOD, "stop")
        (device, *_) = engine.answers("device")
    (folder / ABOUT).write_text(json.dumps({**device, "software": _software(), "our_ops": _our_ops()}))


def _prompts(vocabulary: int, request: Request) -> Sequence[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(vocabulary) for _ in range(request.prefill)] for _ in range(request.batch)]


def _software() -> dict[str, Any]:
    import torch

    return {
        "SGLang": metadata.version("sglang"),
        "torch": str(torch.__version__),
        "sglang-fl-core": metadata.version("sglang-fl-core"),
    }


def _our_ops() -> dict[str, str]:
    """Return the op of ours for each layer class that an adapter covers as a whole."""
    from sglang_fl.sglang_adapter.layers import ADAPTERS

    paths = [(adapter.layer_class, adapter.op.name) for group in ADAPTERS.values() for adapter in group]
    classes = {path.rpartition(":")[2]: op for path, op in paths}
    return {name: op for name, op in classes.items() if "." not in name}


if __name__ == "__main__":
    main()

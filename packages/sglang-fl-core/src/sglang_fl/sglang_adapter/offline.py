"""SGLang's engine in this process, for diagnostics that ask one model many times."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sglang_fl.errors import SettingsError
from sglang_fl.sglang_adapter.failed_ranks import (
    close_sockets,
    end_no_more,
    end_while_running,
    end_while_starting,
)

__all__ = ["FLAGS", "OfflineEngine", "launched", "offline_engine"]

#: Graphs replay what was captured, and a cached prefix is not computed again: neither can be switched.
FLAGS = ("--disable-cuda-graph", "--disable-radix-cache", "--skip-server-warmup")
#: Tokens whose log-probabilities are returned for each position.
TOP = 8


class OfflineEngine:
    """An engine whose schedulers carry out remote calls and answer in files.

    Parameters
    ----------
    engine : ``sglang.Engine``
    folder : where ranks answer
    """

    def __init__(self, engine: Any, folder: Path) -> None:
        self._engine = engine
        self._folder = folder
        arguments = engine.server_args
        self._ranks = arguments.tp_size * arguments.pp_size

    def generate(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, *, logprobs: bool
    ) -> list[dict[str, Any]]:
        """Generate greedily for all prompts in one batch, with log-probabilities if asked for."""
        asked: dict[str, Any] = {}
        if logprobs:
            asked = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": TOP}
        rows: list[dict[str, Any]] = self._engine.generate(
            input_ids=[list(prompt) for prompt in prompts],
            sampling_params={"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True},
            **asked,
        )
        return rows

    def call(self, method: str, step: str, **parameters: Any) -> None:
        """Have every rank carry out a step.

        Raises
        ------
        RuntimeError : a rank failed; with its message
        """
        try:
            self._engine.collective_rpc(method, step=step, **parameters)
        except AssertionError as error:  # how SGLang reports a failed call of rank 0
            raise RuntimeError(f"{step}: {error}") from error
        answers = self.answers("step")
        if len(answers) != self._ranks or any(answer["step"] != step for answer in answers):
            raise RuntimeError(f"{step}: {len(answers)} of {self._ranks} ranks have answered")
        for answer in answers:
            if answer["error"]:
                raise RuntimeError(f"{step}: {answer['error']}")

    def answers(self, name: str) -> list[Any]:
        """Return what each rank has answered under a name, in the order of ranks."""
        found = self._folder.glob(f"{name}.rank*.json")
        paths = sorted(found, key=lambda path: int(path.stem.removeprefix(f"{name}.rank")))
        return [json.loads(path.read_text()) for path in paths]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text.

        Raises
        ------
        RuntimeError : the model has no tokenizer
        """
        tokenizer = getattr(self._engine.tokenizer_manager, "tokenizer", None)
        if tokenizer is None:
            raise RuntimeError("the model has no tokenizer; give tokens instead of texts")
        tokens: list[int] = tokenizer.encode(text)
        return tokens


@contextmanager
def offline_engine(arguments: Sequence[str], folder: Path) -> Iterator[OfflineEngine]:
    """Start an engine with SGLang's own launch arguments; it is gone at the end, whatever happens.

    Parameters
    ----------
    arguments : as of ``python -m sglang.launch_server``
    folder : where ranks answer
    """
    with launched([*arguments, *FLAGS]) as engine:
        yield OfflineEngine(engine, folder)


@contextmanager
def launched(arguments: Sequence[str]) -> Iterator[Any]:
    """Start ``sglang.Engine`` with SGLang's own launch arguments; it is gone at the end, whatever happens.

    Parameters
    ----------
    arguments : as of ``python -m sglang.launch_server``

    Raises
    ------
    SettingsError : there would be several replicas, of which one alone can be asked
    SystemExit : a process of SGLang has failed; its log says why
    """
    import sglang
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    load_plugins()  # before the arguments are parsed, as the server does
    engine = None
    is_failed = False
    try:
        parsed = prepare_server_args(list(arguments))
        if parsed.dp_size > 1:  # SGLang gives these schedulers no socket for remote calls
            raise SettingsError(
                f"--dp-size {parsed.dp_size}: only one replica can be looked into. Use --dp-size 1."
            )
        end_while_starting(parsed)
        engine = sglang.Engine(server_args=parsed)
        end_while_running(engine)
        yield engine
    except SystemExit:
        is_failed = True
        raise
    finally:
        end_no_more()
        try:
            if engine is not None and not is_failed:
                engine.shutdown()
        finally:
            kill_process_tree(os.getpid(), include_parent=False)
            if is_failed:
                close_sockets()

"""SGLang's engine with the plugin beside the same engine without it: throughput and start-up.

    python -m benchmarks.bench_engine [--model Qwen2.5-0.5B,Qwen3-8B] [--sides vanilla,layer2]
        [--rounds 3] [--workload NAME] [--homes DIR] [--csv 'results/{model}.csv']

Random weights (``load_format=dummy``) under a model's real configuration. In each round one engine a side is
started, all at the same time (those of several models too), and every workload runs on them in turn, one at a
time and in a random order, with fresh random tokens and no prefix cache; the next round starts engines anew,
because figures vary between starts by more than between repetitions in one. Each side has a home of its own
for what it caches, empty before the first round: that start is the cold one, the others are warm. With
``--homes`` they stay, for the next call and other models, whose first starts are warm then. Throughput
is that of a whole batch of requests, new tokens a second; of a prefill, prompt tokens a second. Medians over
all repetitions, and the least and greatest of the medians of the rounds. The ratio to the first side is that
of two figures of one turn, because a shared host's speed changes by half from one second to another: the
median over all turns, its standard error, and the least and greatest of the medians of the rounds.

Sides: ``vanilla`` (``SGLANG_PLUGINS=__none__``), ``layer2`` (``USE_FLAGGEMS=0``), ``layers12`` (defaults),
and ``control``, which is vanilla once more: how far its ratio is from 1 says what the others' are worth. What
stands behind a colon is ``SGLANG_FL_PER_OP`` of that side: ``layer2:fused_moe=sglang``.
"""

import argparse
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from benchmarks.about import about
from benchmarks.engine_models import ARGUMENTS, CONFIGS
from benchmarks.tables import write_table

SIDES = {
    "vanilla": {"SGLANG_PLUGINS": "__none__"},
    "layer2": {"USE_FLAGGEMS": "0"},
    "layers12": {},
    "control": {"SGLANG_PLUGINS": "__none__"},
}
#: What the caller has set for himself says nothing about the sides.
OURS = ("SGLANG_FL", "SGLANG_PLUGINS", "USE_FLAGGEMS")
#: Where else than at home compiled kernels would be cached.
CACHES = (
    "TRITON_CACHE_DIR",
    "TRITON_HOME",
    "FLAGGEMS_CACHE_DIR",
    "FLASHINFER_WORKSPACE_BASE",
    "XDG_CACHE_HOME",
)


@dataclass(frozen=True)
class Workload:
    """So many requests at once.

    Parameters
    ----------
    name : in the table
    requests, prompt, new : their number, tokens of each prompt, tokens to generate
    repetitions : in one start
    """

    name: str
    requests: int
    prompt: int
    new: int
    repetitions: int

    def tokens(self) -> int:
        """Tokens that count: new ones, or those of the prompts where a prefill is measured."""
        return self.requests * (self.prompt if self.new == 1 else self.new)


WORKLOADS = (
    Workload("1 request, 512 in, 128 out", 1, 512, 128, 40),
    Workload("16 requests, 512 in, 128 out", 16, 512, 128, 24),
    Workload("64 requests, 512 in, 128 out", 64, 512, 128, 20),
    Workload("prefill of 16 x 1024", 16, 1024, 1, 24),
    Workload("prefill of 1 x 512", 1, 512, 1, 40),
)
WARM_UPS = 2
COLD, START_UP, FIRST = "cold start-up (s)", "start-up (s)", "first generation (s)"
#: Figures of one start: seconds, and tokens a second of each repetition of a workload.
Figures = dict[str, list[float]]
#: Of one model in one round, by side.
Round = dict[str, Figures]


def serve_one(model: str, arguments: dict) -> None:
    """Start an engine; for each line of input, a workload's number, run it once and print the figure."""
    import sglang

    shape = CONFIGS[model]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(shape))
        begun = time.perf_counter()
        arguments = arguments | ARGUMENTS.get(model, {})
        engine = sglang.Engine(model_path=folder, load_format="dummy", **arguments)
        print(ANSWER, time.perf_counter() - begun, flush=True)
        draw = random.Random(7)
        for number, line in enumerate(sys.stdin):
            print(ANSWER, generate(engine, WORKLOADS[int(line)], draw, shape["vocab_size"]), flush=True)
            if number == 0:
                pin()  # not before: a thread that is born later would share its parent's core
        engine.shutdown()


def pin() -> None:
    """Give each process of this engine two cores, the same on every side; its first thread the first of them.

    On a host that is shared, a core may be half as fast again as the next. Which of them a scheduler happens
    to run on makes more of a difference to a small model than any kernel does. Where there are too few cores,
    all stay where they are.
    """
    import psutil

    cores = sorted(os.sched_getaffinity(0))
    children = [child for child in psutil.Process().children() if child.name().startswith("sglang")]
    processes = [psutil.Process(), *sorted(children, key=lambda child: child.name())]
    if len(cores) < 2 * len(processes) + 2:
        print(f"{len(cores)} cores are too few to pin {len(processes)} processes", file=sys.stderr)
        return
    for number, process in enumerate(processes, start=1):
        first, second = cores[2 * number : 2 * number + 2]
        print(f"{process.name()} runs on core {first}, its threads on {second}", file=sys.stderr)
        for thread in process.threads():
            with suppress(ProcessLookupError):  # the thread has ended meanwhile
                os.sched_setaffinity(thread.id, {first if thread.id == process.pid else second})


def generate(engine: Any, load: Workload, draw: random.Random, vocabulary: int) -> float:
    """Run a workload once; return tokens a second."""
    prompts = [[draw.randrange(3, vocabulary) for _ in range(load.prompt)] for _ in range(load.requests)]
    sampling = {"temperature": 0, "max_new_tokens": load.new, "ignore_eos": True}
    start = time.perf_counter()
    engine.generate(input_ids=prompts, sampling_params=sampling)
    return load.tokens() / (time.perf_counter() - start)


#: Begins a line that answers; SGLang prints others.
ANSWER = "BENCH"


class EngineEndedError(Exception):
    """An engine has ended and left a question unanswered."""


class Side:
    """An engine in a process of its own, which runs what it is told.

    Parameters
    ----------
    model : of ``CONFIGS``
    name : of ``SIDES``, with or without orders of ops behind a colon
    homes : folder that holds each side's home, one for all models where the command line names the folder
    options : of the command line
    """

    def __init__(self, model: str, name: str, homes: Path, options: argparse.Namespace) -> None:
        kind, _, per_op = name.partition(":")
        side = kind + "".join(f"_{letters}" for letters in re.findall(r"\w+", per_op))
        file = f"{model}_{side}"
        home = homes / (side if options.homes else file)
        home.mkdir(exist_ok=True)
        #: Whether nothing has been compiled in this home yet.
        self.is_cold = not any(home.iterdir())
        environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith((*OURS, *CACHES))},
            **SIDES[kind],
            **({"SGLANG_FL_PER_OP": per_op} if per_op else {}),
            "HOME": str(home),
            "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor"),
            "SGLANG_FL_DISPATCH_LOG": f"{options.logs}/{file}.dispatch.log",
        }
        command = [sys.executable, "-m", "benchmarks.bench_engine", "--one", "--model", model]
        command += ["--arguments", options.arguments]
        self.name = name
        self._log = Path(options.logs, f"{file}.log")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def answer(self) -> float:
        """Return the next figure.

        Raises
        ------
        EngineEndedError : without one
        """
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                return float(line.removeprefix(ANSWER))
        raise EngineEndedError(
            f"{self.name}: the engine ended with code {self._process.wait()}; see {self._log}"
        )

    def run(self, load: Workload) -> float:
        """Run a workload once; return tokens a second."""
        with suppress(BrokenPipeError):  # answer() says what became of it
            print(WORKLOADS.index(load), file=self._process.stdin, flush=True)
        return self.answer()

    def end_input(self) -> None:
        """Let the engine shut down."""
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def wait(self) -> None:
        """Wait until it has; kill it if it does not."""
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()


def run_round(
    options: argparse.Namespace, loads: Sequence[Workload], homes: Path, draw: random.Random
) -> dict[str, Round]:
    """Start an engine for each model and side, run the workloads, return the figures by model.

    A model one of whose engines ends before its time is told, and left out.

    Parameters
    ----------
    homes : folder that holds each side's home
    draw : draws the order of the sides in each turn
    """
    names = options.sides.split(",")
    sides = {model: [Side(model, name, homes, options) for name in names] for model in options.model}
    started: dict[str, Round] = {}
    figures: dict[str, Round] = {}
    try:
        for model in sides:
            with telling(model):
                started[model] = starts(sides[model])
        for model in started:
            with telling(model):
                run_loads(options, loads, sides[model], started[model], draw)
                figures[model] = started[model]
        return figures
    finally:
        for side in chain.from_iterable(sides.values()):
            side.end_input()
        for side in chain.from_iterable(sides.values()):
            side.wait()


def starts(sides: Sequence[Side]) -> Round:
    """Wait until all engines are up; return how long it took, unless some homes were empty and others not."""
    seconds = {side.name: side.answer() for side in sides}
    are_cold = {side.is_cold for side in sides}
    if len(are_cold) > 1:
        return {name: {} for name in seconds}
    figure = COLD if are_cold.pop() else START_UP
    return {name: {figure: [of_side]} for name, of_side in seconds.items()}


@contextmanager
def telling(model: str) -> Iterator[None]:
    try:
        yield
    except EngineEndedError as ended:
        print(f"{model} is left out: {ended}", flush=True)


def run_loads(
    options: argparse.Namespace,
    loads: Sequence[Workload],
    sides: Sequence[Side],
    figures: Round,
    draw: random.Random,
) -> None:
    """Run the workloads on all sides of a model in turn; add their figures, and print each one's median."""
    for side in sides:
        figures[side.name][FIRST] = [loads[0].tokens() / side.run(loads[0])]
    for load in loads:
        for turn in range(WARM_UPS + max(1, round(load.repetitions * options.share))):
            for side in draw.sample(sides, len(sides)):  # after which other one makes a difference too
                figure = side.run(load)
                if turn >= WARM_UPS:
                    figures[side.name].setdefault(load.name, []).append(figure)
        for row in table([{name: {load.name: of[load.name]} for name, of in figures.items()}]):
            print(*row, sep="  ", flush=True)


def table(rounds: Sequence[Round]) -> list[list]:
    """Return a row for each figure and side: median and spread, ratio to the first side and its spread."""
    rows = []
    first, *_ = rounds[0]
    for name in dict.fromkeys(name for figures in rounds for name in figures[first]):
        having = [figures for figures in rounds if name in figures[first]]
        for side in rounds[0]:
            medians = [statistics.median(figures[side][name]) for figures in having]
            whole = statistics.median(figure for figures in having for figure in figures[side][name])
            pairs = [
                [one / other for one, other in zip(figures[side][name], figures[first][name], strict=True)]
                for figures in having
            ]
            all_pairs = [pair for of_round in pairs for pair in of_round]
            ratios = [statistics.median(of_round) for of_round in pairs]
            rows.append(
                [
                    *(name, side, len(having)),
                    *(f"{figure:.2f}" for figure in (whole, min(medians), max(medians))),
                    *(f"{ratio:.3f}" for ratio in (statistics.median(all_pairs), min(ratios), max(ratios))),
                    f"{error_of_median(all_pairs):.3f}",
                ]
            )
    return rows


def error_of_median(figures: Sequence[float]) -> float:
    """Return the standard error of a median: 1.25 times that of the mean, as for a normal distribution."""
    return 1.25 * statistics.stdev(figures) / len(figures) ** 0.5 if len(figures) > 1 else math.nan


HEAD = [
    *("figure", "side", "rounds", "median", "least of the rounds", "greatest of the rounds"),
    *("ratio", "least ratio", "greatest ratio", "standard error of the ratio"),
]
GPU = {
    "attention_backend": "triton",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "skip_tokenizer_init": True,
    "mem_fraction_static": 0.8,
    "max_total_tokens": 49152,  # so that the engines of all sides fit
    "sleep_on_idle": True,  # else those that wait spin, beside the one that is measured
    "disable_radix_cache": True,
    "cuda_graph_max_bs_decode": 64,
    "random_seed": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="Qwen2.5-0.5B", type=models, help=f"in turn, of {', '.join(CONFIGS)}"
    )
    parser.add_argument("--sides", default="vanilla,layer2", help=f"in turn, of {', '.join(SIDES)}")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each side")
    names = [load.name for load in WORKLOADS]
    all_of = "again for each; without it all (of tiny the first)"
    parser.add_argument("--workload", action="append", choices=names, help=all_of)
    parser.add_argument("--share", type=float, default=1, help="of the workloads' repetitions")
    parser.add_argument("--arguments", default=json.dumps(GPU), help="of the engine, as JSON")
    parser.add_argument("--logs", default=tempfile.gettempdir(), help="folder for the engines' logs")
    parser.add_argument("--homes", type=Path, help="folder for what the sides cache, which is kept")
    parser.add_argument(
        "--csv",
        type=Path,
        help="write the table there, every figure to a .json beside; {model} stands for its name",
    )
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        (model,) = options.model
        serve_one(model, json.loads(options.arguments))
        return
    if options.csv and len(options.model) > 1 and "{model}" not in options.csv.name:
        parser.error(f"--csv {options.csv}: with several models their name belongs into it: {{model}}.csv")
    wanted = options.workload or (names[:1] if options.model == ["tiny"] else names)
    loads = [load for load in WORKLOADS if load.name in wanted]
    rounds: list[dict[str, Round]] = []
    draw = random.Random(7)
    with folder_of_homes(options.homes) as homes:
        for _ in range(options.rounds):
            rounds.append(run_round(options, loads, homes, draw))
            for model in options.model:
                if of_model := [figures[model] for figures in rounds if model in figures]:
                    write(model, of_model, options)
    if any(set(options.model) - set(figures) for figures in rounds):
        sys.exit("not every model was measured in every round; the lines above say which and where to look")


@contextmanager
def folder_of_homes(kept: Path | None) -> Iterator[Path]:
    """Return the folder of the sides' homes: the one that is kept, or else one for this call alone."""
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
    else:
        with tempfile.TemporaryDirectory() as homes:
            yield Path(homes)


def models(names: str) -> list[str]:
    """Return the models that the command line names."""
    unknown = [name for name in names.split(",") if name not in CONFIGS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no shape of {unknown[0]!r}. Known: {', '.join(CONFIGS)}")
    return names.split(",")


def write(model: str, rounds: Sequence[Round], options: argparse.Namespace) -> None:
    """Print a model's table, and write it with its figures where ``--csv`` says."""
    rows = table(rounds)
    for row in [[model], HEAD, *rows]:
        print(*row, sep="  ", flush=True)
    if options.csv:
        arguments = json.dumps(json.loads(options.arguments) | ARGUMENTS.get(model, {}))
        file = options.csv.with_name(options.csv.name.replace("{model}", model))
        write_table(file, about(model, arguments), HEAD, rows)
        file.with_suffix(".json").write_text(json.dumps(rounds) + "\n")


if __name__ == "__main__":
    main()

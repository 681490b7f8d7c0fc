"""SGLang's engine with the plugin beside the same engine without it: throughput and start-up.

    python -m benchmarks.bench_engine [--model Qwen2.5-0.5B] [--sides vanilla,layer2] [--pairs 3] [--csv F]

Random weights (``load_format=dummy``) under a model's real configuration. The engine is started afresh for
each side in turn (A B A B ...), because figures vary between starts by more than between repetitions in one.
In each start every workload is repeated with fresh random tokens and no prefix cache. Throughput is that of a
whole batch of requests, new tokens a second; of a prefill, prompt tokens a second. Medians over all
repetitions, and the least and greatest of the medians of the starts.

Sides: ``vanilla`` (``SGLANG_PLUGINS=__none__``), ``layer2`` (``USE_FLAGGEMS=0``), ``layers12`` (defaults).
"""

import argparse
import csv
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SIDES = {
    "vanilla": {"SGLANG_PLUGINS": "__none__"},
    "layer2": {"USE_FLAGGEMS": "0"},
    "layers12": {},
}
#: What the caller has set for himself says nothing about the sides.
OURS = ("SGLANG_FL", "SGLANG_PLUGINS", "USE_FLAGGEMS")
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
COMMON = {"hidden_act": "silu", "max_position_embeddings": 8192, "torch_dtype": "bfloat16"}


def config(base: dict, *sizes: int, theta: float, eps: float) -> dict:
    """What ``config.json`` of the checkpoint says, as far as it shapes the model."""
    names = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "vocab_size"),
    )
    return base | COMMON | dict(zip(names, sizes, strict=True)) | {"rope_theta": theta, "rms_norm_eps": eps}


CONFIGS = {
    "tiny": config(QWEN2, 128, 256, 2, 4, 2, 512, theta=1e4, eps=1e-6),
    "Qwen2.5-0.5B": config(QWEN2, 896, 4864, 24, 14, 2, 151936, theta=1e6, eps=1e-6),
    "Llama-3-8B": config(LLAMA, 4096, 14336, 32, 32, 8, 128256, theta=5e5, eps=1e-5),
}


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
    Workload("1 request, 512 in, 128 out", 1, 512, 128, 16),
    Workload("16 requests, 512 in, 128 out", 16, 512, 128, 12),
    Workload("64 requests, 512 in, 128 out", 64, 512, 128, 10),
    Workload("prefill of 16 x 1024", 16, 1024, 1, 16),
)


def run_one(model: str, arguments: dict, workloads: tuple[Workload, ...]) -> dict:
    """Start an engine, run the workloads, and return the figures of this start."""
    import sglang

    shape = CONFIGS[model]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(shape))
        begun = time.perf_counter()
        engine = sglang.Engine(model_path=folder, load_format="dummy", **arguments)
        figures: dict = {"start-up (s)": time.perf_counter() - begun}
        draw = random.Random(7)

        def generate(load: Workload) -> float:
            prompts = [
                [draw.randrange(3, shape["vocab_size"]) for _ in range(load.prompt)]
                for _ in range(load.requests)
            ]
            sampling = {"temperature": 0, "max_new_tokens": load.new, "ignore_eos": True}
            start = time.perf_counter()
            engine.generate(input_ids=prompts, sampling_params=sampling)
            return load.tokens() / (time.perf_counter() - start)

        begun = time.perf_counter()
        generate(WORKLOADS[0])
        figures["first generation (s)"] = time.perf_counter() - begun
        for load in workloads:
            for _ in range(2):
                generate(load)
            figures[load.name] = [generate(load) for _ in range(load.repetitions)]
        engine.shutdown()
    return figures


def start(side: str, options: argparse.Namespace) -> dict:
    """Run one side in a process of its own."""
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith(OURS)},
        **SIDES[side],
        "SGLANG_FL_DISPATCH_LOG": f"{options.logs}/{side}.dispatch.log",
    }
    command = [sys.executable, "-m", "benchmarks.bench_engine", "--one", "--model", options.model]
    command += ["--arguments", options.arguments]
    with Path(options.logs, f"{side}.log").open("ab") as log:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=log, check=False, timeout=options.timeout
        )
    if done.returncode:
        raise SystemExit(f"{side}: the engine ended with code {done.returncode}; see {log.name}")
    return json.loads(done.stdout.splitlines()[-1])


def table(starts: dict[str, list[dict]]) -> list[list]:
    """Return a row for each figure and side: median, spread of the starts, ratio to the first side."""
    rows = []
    first = next(iter(starts))
    for name in starts[first][0]:
        medians = {side: [middle(figures[name]) for figures in all_] for side, all_ in starts.items()}
        whole = {
            side: middle([v for figures in all_ for v in listed(figures[name])])
            for side, all_ in starts.items()
        }
        for side, of_starts in medians.items():
            figures = (whole[side], min(of_starts), max(of_starts))
            ratio = f"{whole[side] / whole[first]:.3f}"
            rows.append([name, side, len(of_starts), *(f"{figure:.2f}" for figure in figures), ratio])
    return rows


def listed(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]


def middle(value: float | list[float]) -> float:
    return statistics.median(listed(value))


def about(model: str) -> str:
    import torch
    import triton
    from sglang.version import __version__ as sglang_version

    from sglang_fl import __version__

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return (
        f"{model}; {device}; sglang {sglang_version}, sglang-fl-core {__version__}, "
        f"torch {torch.__version__}, triton {triton.__version__}"
    )


HEAD = ["figure", "side", "starts", "median", "least of the starts", "greatest of the starts", "ratio"]
GPU = {
    "attention_backend": "triton",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "skip_tokenizer_init": True,
    "mem_fraction_static": 0.5,
    "disable_radix_cache": True,
    "cuda_graph_max_bs_decode": 64,
    "random_seed": 1,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="Qwen2.5-0.5B", choices=CONFIGS)
    parser.add_argument("--sides", default="vanilla,layer2", help=f"in turn, of {', '.join(SIDES)}")
    parser.add_argument("--pairs", type=int, default=3, help="starts of each side")
    parser.add_argument("--arguments", default=json.dumps(GPU), help="of the engine, as JSON")
    parser.add_argument("--timeout", type=float, default=400, help="seconds for one start and its workloads")
    parser.add_argument("--logs", default=tempfile.gettempdir(), help="folder for the engines' logs")
    parser.add_argument("--csv", type=Path, help="write the table there too, after each pair")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        loads = WORKLOADS[:1] if options.model == "tiny" else WORKLOADS
        print(json.dumps(run_one(options.model, json.loads(options.arguments), loads)))
        return
    starts: dict[str, list[dict]] = {side: [] for side in options.sides.split(",")}
    for pair in range(options.pairs):
        for side in starts:
            figures = start(side, options)
            starts[side].append(figures)
            print(pair, side, {name: round(middle(value), 2) for name, value in figures.items()}, flush=True)
        write(table(starts), about(options.model), options)


def write(rows: list[list], text: str, options: argparse.Namespace) -> None:
    for row in [HEAD, *rows]:
        print(*row, sep="  ", flush=True)
    if options.csv:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        with options.csv.open("w", newline="") as file:
            command = f"--model {options.model} --sides {options.sides} --pairs {options.pairs}"
            file.write(f"# python -m benchmarks.bench_engine {command}; {text}; {options.arguments}\n")
            csv.writer(file).writerows([HEAD, *rows])


if __name__ == "__main__":
    main()

"""Our attention ops' references beside SGLang's torch_native functions, on the CPU, in one run.

Both sides get what an attention layer has: queries, the pools, and where the tokens lie. Ours gets lists of
slots, which the backend makes once for all layers of a step; SGLang's gets its table of requests. Which side
begins is drawn anew in each round. With one thread its processor time is taken, so that other programs on the
machine matter less. Ratio: SGLang's time by ours, the median over the rounds, and its standard
error by resampling. Errors: the largest one from float64, in units of the dtype's rounding beside the size of
the terms.

    python -m benchmarks.bench_attention [--rounds N] [--threads N] [--csv FILE]
"""

import argparse
import itertools
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from torch import Tensor

from benchmarks.about import about
from benchmarks.tables import write_table
from sglang_fl.ops import OPS
from sglang_fl.ops.compare import error_in_units
from sglang_fl.sglang_adapter.attention.slots import SlotLists, bounds_of

#: Query heads, heads of keys, elements of a head: Qwen2.5-0.5B, Llama-3-8B, and one head of keys for each.
SHAPES = {"14/2 x 64": (14, 2, 64), "32/8 x 128": (32, 8, 128), "12/12 x 64": (12, 12, 64)}
#: Tokens in the pool and new tokens of each sequence.
DECODE = [
    (length - 1, 1)
    for length in (16, 40, 75, 168, 215, 324, 448, 583, 740, 903, 992, 1087, 1168, 1337, 1369, 1500)
]
PREFILL = [(0, 1024)]
MIXED = [(512, 128), (0, 300), (200, 17), (0, 64)]
SITUATIONS = {"decode, 16 requests": DECODE, "prefill, 1 x 1024": PREFILL, "prefill, 4 mixed": MIXED}

#: Two functions, the first one ours, and what both should return.
Sides = tuple[Callable[[], Tensor], Callable[[], Tensor], Callable[[Tensor], float]]


@dataclass
class Batch:
    """Sequences of these lengths, with their tokens all over a pool."""

    lengths: list[tuple[int, int]]
    shape: tuple[int, int, int]
    dtype: torch.dtype

    def __post_init__(self) -> None:
        heads, kv_heads, size = self.shape
        self.prefix, self.new = (torch.tensor(part) for part in zip(*self.lengths, strict=True))
        self.whole = self.prefix + self.new
        total = int(self.whole.sum())
        slots = torch.randperm(total) + 1
        self.table = torch.zeros(len(self.lengths) + 1, int(self.whole.max()), dtype=torch.int32)
        bounds = bounds_of(self.whole).tolist()
        for row, (first, last) in enumerate(itertools.pairwise(bounds)):
            self.table[row + 1, : last - first] = slots[first:last]
        self.rows = torch.arange(1, len(self.lengths) + 1)
        self.k_buffer, self.v_buffer = (
            torch.randn(total + 1, kv_heads, size).to(self.dtype) for _ in range(2)
        )
        self.q = torch.randn(int(self.new.sum()), heads, size).to(self.dtype)
        self.scale = size**-0.5
        # What the model passes for the new tokens is what it has just written.
        where = [self.table[row, p : p + n] for row, (p, n) in enumerate(self.lengths, 1)]
        loc = torch.cat(where).long()
        self.k, self.v = self.k_buffer[loc], self.v_buffer[loc]

    def sides(self) -> Sides:
        """Return both functions, and one that says how far a result is from float64."""
        is_decode = bool((self.new == 1).all())
        of = SlotLists(self.table, self.rows, self.whole if is_decode else self.prefix)
        lists = of.last(None, is_window_pool=False)
        pools = (self.k_buffer, self.v_buffer)
        if is_decode:
            op, tensors = OPS["decode_attention"], (self.q, *pools, *lists)
        else:
            op, tensors = (
                OPS["extend_attention"],
                (self.q, self.k, self.v, *pools, bounds_of(self.new), *lists),
            )
        names = tuple(op.signature.parameters)
        exact = {n: t.double() if t.is_floating_point() else t for n, t in zip(names, tensors, strict=False)}
        exact["scale"] = self.scale
        truth = op.reference(**exact)
        (size,) = op.magnitude((truth,), **exact)
        return (
            lambda: op.reference(*tensors, self.scale),
            lambda: self._native(is_decode),
            lambda result: error_in_units(result, truth, size),
        )

    def _native(self, is_decode: bool) -> Tensor:
        backend = object.__new__(TorchNativeAttnBackend)  # its two functions use nothing of the object
        given = (self.q, torch.empty_like(self.q), self.k_buffer, self.v_buffer, self.table, self.rows)
        options = {"scaling": self.scale, "enable_gqa": self.shape[0] != self.shape[1]}
        if is_decode:
            return backend._run_sdpa_forward_decode(*given, self.whole, **options)
        lengths = (self.whole, self.prefix, self.new)
        return backend._run_sdpa_forward_extend(*given, *lengths, **options, causal=True)


def measured(sides: Sides, rounds: int) -> list[tuple[float, float]]:
    """Return the times of both sides in ms, round by round; which begins is drawn."""
    ours, native, _ = sides
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    found = []
    for _ in range(rounds + 2):
        order = [0, 1]
        random.shuffle(order)
        times = [0.0, 0.0]
        for side in order:
            begin = clock()
            (ours, native)[side]()
            times[side] = 1e3 * (clock() - begin)
        found.append((times[0], times[1]))
    return found[2:]


def median_and_error(values: list[float]) -> tuple[float, float]:
    drawn = [statistics.median(random.choices(values, k=len(values))) for _ in range(200)]
    return statistics.median(values), statistics.stdev(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    random.seed(0)
    about_it = about(f"{options.threads} threads")
    head = (
        "situation",
        "heads",
        "dtype",
        "ours (ms)",
        "torch_native (ms)",
        "ratio",
        "its error",
        "units, ours",
    )
    head = (*head, "units, torch_native")
    print(f"{about_it}\n\n| {' | '.join(head)} |\n{'|---' * len(head)}|", flush=True)
    rows = []
    for situation, lengths in SITUATIONS.items():
        for name, shape in SHAPES.items():
            for dtype in (torch.float32, torch.bfloat16):
                row = (
                    situation,
                    name,
                    str(dtype).removeprefix("torch."),
                    *figures(lengths, shape, dtype, options.rounds),
                )
                rows.append(row)
                print(f"| {' | '.join(row)} |", flush=True)
    if options.csv:
        write_table(options.csv, about_it, head, rows)


def figures(
    lengths: list[tuple[int, int]], shape: tuple[int, int, int], dtype: torch.dtype, rounds: int
) -> tuple[str, ...]:
    with torch.inference_mode():
        sides = Batch(lengths, shape, dtype).sides()
        units = [sides[2](side()) for side in sides[:2]]
        times = measured(sides, rounds)
    ours, native = (statistics.median(side) for side in zip(*times, strict=True))
    ratio, error = median_and_error([theirs / own for own, theirs in times])
    return (f"{ours:.2f}", f"{native:.2f}", f"{ratio:.2f}", f"{error:.2f}", *(f"{u:.2f}" for u in units))


if __name__ == "__main__":
    main()

"""Other tiles of our attention kernels than those of their tables, on the device: which is fastest where.

    python -m benchmarks.sweep_attention decode|extend [--shape NAME] [--sizes 1x32768,64x4096] [--csv FILE]

A cell is a layer and a size: for decode a number of sequences and their length, for extend sequences, prefix
and new tokens of each. All tiles are measured alone, as CUDA graphs of calls on other slots; the fastest once
more beside that of the table, in turn. A tile that cannot run is left out. At the end of each layer: which
tiles are fastest over all its sizes, by the geometric mean of what they were alone.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.about import about
from benchmarks.cell import Cell
from benchmarks.cuda_timing import graph_times
from benchmarks.paged_attention import decode_cells, extend_cells
from benchmarks.tables import write_table
from benchmarks.workloads import PAGED_ATTENTIONS, PagedAttention
from sglang_fl_nvidia.flagos import attention_tiles as tiles
from sglang_fl_nvidia.flagos import decode_attention, extend_attention

#: Tiles that are measured once more.
BEST = 6
#: Bytes that a multiprocessor can hold.
MEMORY = 227 * 2**10
HEAD = ["shape", "tokens", "tile", "µs", "of the table's speed", "GB/s"]

Choice = Any  #: What stands in a table for a layer: a tile, or several.


class Decode:
    """The tiles of ``decode_attention``."""

    module: Any = decode_attention
    cells = staticmethod(decode_cells)
    sizes = "1x512,1x4096,1x32768,8x4096,16x32768,64x512,64x4096"
    #: Query heads, slots, warps, stages, and programs of a multiprocessor.
    tried = tuple(itertools.product((16, 32, 64), (16, 32, 64, 128), (4, 8), (2, 3, 4), (1, 2, 3, 4)))
    #: Bytes of keys and values that should be on their way to a multiprocessor: fewer do not fill the time.
    least_held = 40e3

    def __init__(self, shape: PagedAttention) -> None:
        self.shape = shape
        of_heads = tiles.DECODE_EIGHT_BIT if shape.is_eight_bit else tiles.DECODE
        self.table: dict[int, Choice] = tiles.DECODE_LATENT if shape.is_latent else of_heads
        facts = shape.heads // shape.kv_heads, shape.is_latent, shape.is_eight_bit
        now = tiles.decode_tile(max(shape.keys, shape.values), *facts)
        self.place = next(place for place, tile in self.table.items() if tile is now)

    def choices(self) -> Iterator[Choice]:
        """Yield tiles that are not larger than a layer has heads, and that could fit."""
        group = self.shape.heads // self.shape.kv_heads
        for tile in itertools.starmap(tiles.DecodeTile, self.tried):
            of_stage = tile.slots * self.shape.bytes_of_slot // self.shape.kv_heads
            held = of_stage * (tile.num_stages - 1) * tile.per_multiprocessor
            if tile.heads < 2 * max(16, group) and self.least_held <= held <= MEMORY:
                yield tile


class Extend:
    """The tiles of ``extend_attention``."""

    module: Any = extend_attention
    cells = staticmethod(extend_cells)
    sizes = "1x0x512,1x0x4096,16x0x1024,1x8192x1024,8x4096x256,32x2048x16"
    #: Rows and warps, keys, and stages.
    tried = tuple(itertools.product(((32, 8), (64, 4), (64, 8), (128, 4), (128, 8)), (32, 64, 128), (2, 3)))

    def __init__(self, shape: PagedAttention) -> None:
        self.shape = shape
        self.table: dict[int, Choice] = tiles.EXTEND
        now = tiles.extend_tiles(max(shape.keys, shape.values))
        self.place = next(place for place, choice in self.table.items() if choice is now)

    def choices(self) -> Iterator[Choice]:
        """Yield each tile alone that could fit."""
        of_key = self.shape.bytes_of_slot // self.shape.kv_heads
        for (rows, num_warps), keys, num_stages in self.tried:
            held = rows * self.shape.keys * 2 + keys * of_key * (num_stages - 1)
            if held <= MEMORY:
                yield (tiles.ExtendTile(rows, keys, num_warps, num_stages),)


def call_with(
    subject: Decode | Extend, choice: Choice, call: Callable, compiled: dict[Choice, dict]
) -> Callable:
    """Return a call of our kernels by what is to stand in the table.

    Parameters
    ----------
    compiled : kernels of calls before, by what stood there
    """
    launches = compiled.setdefault(choice, {})

    def run(*arguments: torch.Tensor) -> object:
        kept = subject.table[subject.place], subject.module._launches
        subject.table[subject.place], subject.module._launches = choice, launches
        try:
            return call(*arguments)
        finally:
            subject.table[subject.place], subject.module._launches = kept

    return run


def measured(
    subject: Decode | Extend, cell: Cell, compiled: dict[Choice, dict]
) -> tuple[dict[Choice, float], dict[Choice, float]]:
    """Return the times of all choices that run, alone, and of the fastest and the table's, in turn, in µs."""
    now = subject.table[subject.place]
    count = 10 if cell.moved > 50e6 else 48
    inputs = cell.several_inputs()
    calls, alone = {}, {}
    for choice in dict.fromkeys((now, *subject.choices())):
        run = call_with(subject, choice, cell.sides["flagos"], compiled)
        calls[choice] = [lambda run=run, given=given: run(*given) for given in inputs]
        try:
            alone |= graph_times({choice: calls[choice]}, count, rounds=3)
        except Exception as error:
            if choice == now:
                raise
            print(f"  {text_of(choice)}: {type(error).__name__}: {str(error)[:100]}", flush=True)
    best = sorted(alone, key=alone.__getitem__)[:BEST]
    together = dict.fromkeys((now, *best))
    return alone, graph_times({choice: calls[choice] for choice in together}, count)


def text_of(choice: Choice) -> str:
    """Return a tile, or several, in one line."""
    several = choice if isinstance(choice[0], tuple) else (choice,)
    return " or ".join(" ".join(f"{n}={v}" for n, v in tile._asdict().items()) for tile in several)


def rows_of(subject: Decode | Extend, cell: Cell, times: dict[Choice, float]) -> list[list]:
    """Print the times of a cell in turn, and return its rows, the table's choice first."""
    now = subject.table[subject.place]
    print(f"{cell.shape} tokens {cell.tokens}", flush=True)
    rows = []
    for choice in sorted(times, key=lambda choice: (choice != now, times[choice])):
        took = times[choice]
        speeds = f"{took:.2f}", f"{times[now] / took:.3f}", f"{cell.moved / took / 1e3:.0f}"
        rows.append([cell.shape, cell.tokens, text_of(choice), *speeds])
        print("  ", *speeds, text_of(choice), flush=True)
    return rows


def fastest(subject: Decode | Extend, cells: Sequence[dict[Choice, float]]) -> dict[Choice, float]:
    """Return the fastest choices over all cells, each with its speed as a ratio to the table's."""
    now = subject.table[subject.place]
    everywhere = set(cells[0]).intersection(*cells[1:])
    ratios = {
        choice: statistics.geometric_mean(times[now] / times[choice] for times in cells)
        for choice in everywhere
    }
    return dict(sorted(ratios.items(), key=lambda item: -item[1])[:BEST])


def sweep(subject: Decode | Extend, sizes: Sequence[tuple[int, ...]]) -> list[list]:
    """Measure and print all cells of a layer; return their rows."""
    rows, alone = [], []
    compiled: dict[Choice, dict] = {}
    for cell in subject.cells(subject.shape, sizes):
        of_cell, in_turn = measured(subject, cell, compiled)
        alone.append(of_cell)
        rows += rows_of(subject, cell, in_turn)
    print(f"{subject.shape.name}, all sizes:")
    for choice, ratio in fastest(subject, alone).items():
        print("  ", f"{ratio:.3f}", text_of(choice), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("op", choices=("decode", "extend"))
    parser.add_argument("--shape", help="only layers whose name has this in it")
    parser.add_argument("--sizes", help="others than the usual ones")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    options = parser.parse_args()
    kind: type[Decode | Extend] = {"decode": Decode, "extend": Extend}[options.op]
    sizes = [tuple(map(int, size.split("x"))) for size in (options.sizes or kind.sizes).split(",")]
    rows = []
    with torch.inference_mode():
        for shape in PAGED_ATTENTIONS:
            if options.shape is None or options.shape in shape.name:
                rows += sweep(kind(shape), sizes)
    if options.csv:
        write_table(options.csv, about(), HEAD, rows)


if __name__ == "__main__":
    main()

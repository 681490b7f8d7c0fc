"""Other tiles of ``decode_attention`` than those of its table, on the device: which is fastest where.

    python -m benchmarks.sweep_attention [--shape NAME] [--sizes 1x32768,64x4096] [--csv FILE]

A cell is a layer, a number of sequences and their length. All tiles are measured alone, as CUDA graphs of
calls on other slots; the fastest once more beside that of the table, in turn. A tile that cannot run is left
out.
"""

import argparse
import itertools
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.cell import Cell
from benchmarks.cuda_timing import FOOTPRINT, graph_times
from benchmarks.paged_attention import decode_cells
from benchmarks.tables import write_table
from benchmarks.workloads import PAGED_ATTENTIONS, PagedAttention
from sglang_fl_nvidia.flagos import attention_tiles as tiles
from sglang_fl_nvidia.flagos import decode_attention as decode

SIZES = "1x512,1x4096,1x32768,8x4096,16x32768,64x512,64x4096"
#: Query heads, slots, warps, stages, and programs of a multiprocessor.
TRIED = tuple(itertools.product((16, 32, 64), (16, 32, 64, 128), (4, 8), (2, 3, 4), (1, 2, 3, 4)))
#: Bytes of keys and values that should be on their way to a multiprocessor: fewer do not fill the time that
#: they take, and more do not fit.
LEAST_HELD, MOST_HELD = 40e3, 220e3
#: Tiles that are measured once more.
BEST = 6

Times = dict[tiles.DecodeTile, float]


def table_of(shape: PagedAttention) -> tuple[dict[int, tiles.DecodeTile], int]:
    """Return the table that has the tile of a layer, and its place there."""
    table = tiles.DECODE_LATENT if shape.is_latent else tiles.DECODE
    wanted = tiles.decode_tile(max(shape.keys, shape.values), shape.heads // shape.kv_heads, shape.is_latent)
    return table, next(key for key, tile in table.items() if tile is wanted)


def candidates(shape: PagedAttention) -> Iterator[tiles.DecodeTile]:
    """Yield tiles that are not larger than a layer has heads, and that could fit."""
    group = shape.heads // shape.kv_heads
    for tile in itertools.starmap(tiles.DecodeTile, TRIED):
        of_stage = tile.slots * shape.bytes_of_slot // shape.kv_heads
        held = of_stage * (tile.num_stages - 1) * tile.per_multiprocessor
        if tile.heads < 2 * max(16, group) and LEAST_HELD <= held <= MOST_HELD:
            yield tile


def call_with(shape: PagedAttention, tile: tiles.DecodeTile, call: Callable) -> Callable:
    """Return a call of our kernels by a tile."""
    table, place = table_of(shape)
    launches: dict[Any, Any] = {}

    def run(*arguments: torch.Tensor) -> object:
        kept = table[place], decode._launches
        table[place], decode._launches = tile, launches
        try:
            return call(*arguments)
        finally:
            table[place], decode._launches = kept

    return run


def measured(shape: PagedAttention, cell: Cell) -> tuple[Times, int]:
    """Return the times of the fastest tiles and that of the table, in µs, and how many could not run."""
    table, place = table_of(shape)
    sets = max(2, min(24, int(FOOTPRINT / cell.moved) + 1))
    count = 10 if cell.moved > 50e6 else 48
    inputs = [cell.inputs() for _ in range(sets)]
    calls, alone, failed = {}, {}, 0
    for tile in dict.fromkeys((table[place], *candidates(shape))):
        run = call_with(shape, tile, cell.sides["flagos"])
        calls[tile] = [lambda run=run, given=given: run(*given) for given in inputs]
        try:
            alone |= graph_times({tile: calls[tile]}, count, rounds=3)
        except Exception as error:
            failed += 1
            if tile == table[place]:
                raise
            print(f"  {tuple(tile)}: {type(error).__name__}: {str(error)[:100]}", flush=True)
    best = sorted(alone, key=alone.__getitem__)[:BEST]
    together = dict.fromkeys((table[place], *best))
    return graph_times({tile: calls[tile] for tile in together}, count), failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", help="only layers whose name has this in it")
    parser.add_argument("--sizes", default=SIZES, help="numbers of sequences and their lengths")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    options = parser.parse_args()
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes.split(",")]
    rows = []
    with torch.inference_mode():
        for shape in PAGED_ATTENTIONS:
            if options.shape is None or options.shape in shape.name:
                for cell in decode_cells(shape, sizes):
                    rows += rows_of(shape, cell)
    if options.csv:
        about = (
            f"{torch.cuda.get_device_name()}; triton {triton.__version__}, Python {platform.python_version()}"
        )
        write_table(options.csv, f"python -m benchmarks.sweep_attention; {about}", HEAD, rows)


HEAD = ["shape", "sequences", *tiles.DecodeTile._fields, "µs", "of the table's speed", "GB/s"]


def rows_of(shape: PagedAttention, cell: Cell) -> list[list]:
    """Measure a cell, print it, and return its rows, the table's tile first."""
    times, failed = measured(shape, cell)
    table, place = table_of(shape)
    now = times[table[place]]
    print(f"{cell.shape} sequences {cell.tokens} ({failed} tiles could not run)", flush=True)
    rows = []
    for tile in sorted(times, key=lambda tile: (tile != table[place], times[tile])):
        speeds = (f"{times[tile]:.2f}", f"{now / times[tile]:.3f}", f"{cell.moved / times[tile] / 1e3:.0f}")
        rows.append([cell.shape, cell.tokens, *tile, *speeds])
        print("  ", *tile, *speeds, flush=True)
    return rows


if __name__ == "__main__":
    main()

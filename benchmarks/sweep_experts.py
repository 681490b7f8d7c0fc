"""Other tiles of our experts' kernels than those of their table, on the device: which is fastest where.

    python -m benchmarks.sweep_experts [--shape NAME] [--tokens 1,2,4] [--compile] [--csv FILE]

A cell is a shape and a number of tokens. One layer's tile is changed at a time, or the rows of both, and
the whole op is timed: all tiles and SGLang's own in turn, as CUDA graphs of calls on fresh inputs. The
first tiles of a cell are the table's; a result that differs from theirs, or from its own when it is
computed again, is an error. Tiles that cannot run are left out. Compiling takes longer than timing: with
``--compile`` nothing is timed, so that several of these can run beside each other, one a shape.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.about import about
from benchmarks.bench_ops import fused_moe as cells_of
from benchmarks.bench_ops import set_server_args
from benchmarks.cell import Cell
from benchmarks.cuda_timing import graph_times
from benchmarks.tables import write_table
from benchmarks.workloads import EXPERTS, Experts
from sglang_fl_nvidia.flagos import expert_tiles, fused_moe
from sglang_fl_nvidia.flagos.expert_tiles import Tile

#: By the rows of a tile, of which 0 stands for assignments that are not sorted: other tiles of each layer.
FIRST = {
    0: (
        *(Tile(16, 32, 64, 4, 6), Tile(16, 32, 128, 4, 4), Tile(16, 32, 128, 4, 5), Tile(16, 32, 256, 4, 3)),
        *(Tile(16, 32, 256, 4, 4), Tile(16, 32, 256, 4, 5), Tile(16, 32, 256, 8, 4), Tile(16, 32, 512, 4, 3)),
        *(Tile(16, 64, 128, 4, 3), Tile(16, 64, 128, 8, 3), Tile(16, 16, 256, 4, 4), Tile(16, 16, 512, 4, 3)),
    ),
    16: (Tile(16, 32, 128, 4, 4), Tile(16, 64, 128, 4, 3), Tile(16, 32, 256, 4, 4), Tile(16, 64, 256, 4, 3)),
    32: (Tile(32, 32, 256, 4, 3), Tile(32, 64, 256, 4, 3), Tile(32, 128, 128, 8, 3)),
    64: (Tile(64, 64, 128, 4, 3), Tile(64, 128, 64, 8, 4), Tile(64, 128, 64, 4, 3)),
    128: (
        Tile(128, 128, 64, 8, 3),
        Tile(128, 64, 64, 8, 4),
        Tile(128, 64, 64, 4, 4),
        Tile(128, 128, 128, 8, 2),
    ),
}
SECOND = {
    0: (
        *(Tile(16, 32, 256, 4, 4), Tile(16, 64, 128, 4, 4), Tile(16, 64, 128, 4, 6), Tile(16, 64, 256, 4, 3)),
        *(
            Tile(16, 64, 256, 4, 4),
            Tile(16, 128, 64, 4, 5),
            Tile(16, 128, 128, 4, 3),
            Tile(16, 128, 128, 4, 4),
        ),
        *(Tile(16, 128, 128, 8, 3), Tile(16, 128, 256, 8, 3), Tile(16, 256, 128, 8, 3)),
    ),
    16: (Tile(16, 64, 128, 4, 4), Tile(16, 64, 256, 4, 3), Tile(16, 32, 256, 4, 4), Tile(16, 128, 128, 8, 3)),
    32: (Tile(32, 64, 128, 4, 4), Tile(32, 64, 256, 4, 3), Tile(32, 128, 128, 8, 3)),
    64: (Tile(64, 128, 128, 4, 3), Tile(64, 256, 64, 8, 4), Tile(64, 128, 64, 8, 4)),
    128: (Tile(128, 128, 64, 8, 4), Tile(128, 128, 64, 4, 4), Tile(128, 256, 64, 8, 3)),
}
HEAD = [
    *("shape", "tokens", "first layer", "second layer", "halvings", "group", "µs", "of the table's speed"),
    "of SGLang's speed",
]


class Choice(NamedTuple):
    """The tiles of both layers; of sorted ones how often the last may be halved, and how many are a group."""

    first: Tile
    second: Tile
    halvings: int = 0
    group: int = 1


def choices(layer: Experts, rows: int) -> Iterator[Choice]:
    """Yield the table's choice, then others in one respect; ``rows`` is 0 where nothing is sorted."""
    if not rows:
        few = expert_tiles.second_few(layer.hidden, layer.intermediate)
        now = Choice(expert_tiles.first_few(layer.hidden), few)
        yield now
    else:
        inner = layer.intermediate
        group = expert_tiles.group_for(inner)
        by_rows = {
            size: Choice(*of_size, expert_tiles.halvings(size, inner), group)
            for size, of_size in expert_tiles.sorted_tiles(inner).items()
        }
        now = by_rows[rows]
        yield now
        yield from (choice for choice in by_rows.values() if choice != now)
        yield from (now._replace(halvings=number) for number in range(3) if number != now.halvings)
        yield from (now._replace(group=number) for number in (1, 8, 16) if number != group)
    yield from (now._replace(first=tile) for tile in FIRST[rows] if tile != now.first)
    yield from (now._replace(second=tile) for tile in SECOND[rows] if tile != now.second)


def rows_of(layer: Experts, tokens: int) -> int:
    """Return the rows of the tiles that so many tokens are computed with, 0 where they are not sorted."""
    assignments = tokens * layer.top_k
    if assignments <= min(fused_moe.FEW, layer.experts):
        return 0
    return expert_tiles.rows_for(assignments, layer.experts)


@contextmanager
def chosen(choice: Choice, is_sorted: bool, launches: dict) -> Iterator[None]:
    """Have these tiles taken, of sorted assignments no others compiled; ``launches`` keeps the kernels."""
    rows = choice.first.rows
    taken: dict[str, object] = {"_launches": launches, "sorted_tiles": lambda inner: {}}
    if is_sorted:
        taken["sorted_tiles"] = lambda inner: {rows: choice[:2]}
        taken["rows_for"] = lambda assignments, experts: rows
        taken |= {"halvings": lambda rows, inner: choice.halvings, "group_for": lambda inner: choice.group}
    else:
        taken |= {"first_few": lambda width: choice.first, "second_few": lambda width, inner: choice.second}
    kept = {name: getattr(fused_moe, name) for name in taken}
    try:
        for name, value in taken.items():
            setattr(fused_moe, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(fused_moe, name, value)


def call_with(choice: Choice, is_sorted: bool, cell: Cell) -> Callable:
    """Return a call of our kernels with these tiles."""
    launches: dict = {}

    def run(*arguments: torch.Tensor) -> torch.Tensor:
        with chosen(choice, is_sorted, launches):
            return cell.sides["flagos"](*arguments)

    return run


def sweep(layer: Experts, wanted: Sequence[int], is_timed: bool) -> list[list]:
    """Measure and print the cells of a layer; return their rows."""
    table = []
    for cell in cells_of(layer):
        if cell.tokens not in wanted:
            continue
        rows = rows_of(layer, cell.tokens)
        runs: dict[Choice, Callable] = {}
        inputs = cell.several_inputs()
        for choice in choices(layer, rows):
            run = call_with(choice, rows > 0, cell)
            try:
                result = run(*inputs[0])
            except Exception as error:
                if not runs:
                    raise
                print(f"  {text_of(choice)}: {type(error).__name__}: {str(error)[:100]}", flush=True)
                continue
            require_same(choice, result, run(*inputs[0]), next(iter(runs.values()), run)(*inputs[0]))
            runs[choice] = run
        if is_timed:
            table += timed(cell, runs, inputs)
    return table


def require_same(choice: Choice, result: torch.Tensor, again: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise ``AssertionError`` for a result that is another one each time, or not the table's."""
    if not torch.equal(result, again):
        raise AssertionError(f"{text_of(choice)}: the same call has two results")
    off = (result.float() - expected.float()).abs().max() / expected.float().abs().max()
    if not off < 0.02:
        raise AssertionError(f"{text_of(choice)}: off by {off:.3f} of the largest element")


def timed(cell: Cell, runs: dict[Choice, Callable], inputs: Sequence[tuple]) -> list[list]:
    """Time a cell, print and return its rows, the table's tiles first."""
    sides: dict[object, Callable] = {**runs, "sglang": cell.sides["sglang"]}
    calls = {
        name: [lambda run=run, given=given: run(*given) for given in inputs] for name, run in sides.items()
    }
    times = graph_times(calls, 24 if cell.moved < 3e8 else 12, rounds=7)
    now = next(iter(runs))
    table = []
    print(f"{cell.shape} tokens {cell.tokens}", flush=True)
    for choice in sorted(runs, key=lambda choice: (choice != now, times[choice])):
        took = times[choice]
        speeds = f"{took:.2f}", f"{times[now] / took:.3f}", f"{times['sglang'] / took:.3f}"
        table.append([cell.shape, cell.tokens, *map(text_of, choice[:2]), *choice[2:], *speeds])
        print("  ", *speeds, text_of(choice), flush=True)
    return table


def text_of(parts: Iterable[object]) -> str:
    """Return a tile, or a choice of them, in one line."""
    return " ".join(text_of(part) if isinstance(part, tuple) else str(part) for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", help="only layers whose name has this in it")
    parser.add_argument("--tokens", default="1,2,4,8,16,64,256,1024,4096", help="of a batch")
    parser.add_argument("--compile", action="store_true", help="compile all, time nothing")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    options = parser.parse_args()
    wanted = [int(tokens) for tokens in options.tokens.split(",")]
    set_server_args()
    table = []
    with torch.inference_mode():
        for layer in EXPERTS:
            if options.shape is None or options.shape in layer.name:
                table += sweep(layer, wanted, not options.compile)
                torch.cuda.empty_cache()
    if options.csv:
        write_table(options.csv, about(), HEAD, table)


if __name__ == "__main__":
    main()

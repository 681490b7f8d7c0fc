"""The tiles of the kernels of ``fused_moe``, as measured.

Measured on an H200 (bfloat16, triton 3.6, CUDA graphs of 8 and 24 calls on fresh inputs, medians of 5), each
kernel alone with 3 to 8 tiles, in the shapes of Qwen3-30B-A3B, GLM-4.5-Air and DeepSeek-V3 at tp 8, for 1 to
4096 tokens. Each tile here was the fastest of its kernel or within 3 % of it at nearly all of these. µs of a
whole layer of Qwen3-30B-A3B with 16 and 32 rows a tile at 256 tokens: 321 and 298; with 32 and 64 at 512: 339
and 316; with 64 and 128 at 1024: 378 and 370.
"""

from typing import NamedTuple

__all__ = ["FIRST_FEW", "SORTED", "Tile", "fitting", "rows_for", "second_few"]


class Tile(NamedTuple):
    """What a program of a matrix product takes at a time.

    Parameters
    ----------
    rows, columns : of the result
    depth : of both factors
    num_warps, num_stages : of a program
    """

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int


#: The first layer, assignments that are not sorted.
FIRST_FEW = Tile(16, 32, 128, 4, 4)
#: Both layers, sorted assignments, by the rows of a tile.
SORTED = {
    16: (Tile(16, 32, 128, 4, 4), Tile(16, 128, 128, 4, 3)),
    32: (Tile(32, 64, 128, 4, 3), Tile(32, 128, 128, 4, 3)),
    64: (Tile(64, 64, 64, 4, 4), Tile(64, 128, 64, 4, 4)),
    128: (Tile(128, 128, 64, 8, 4), Tile(128, 256, 64, 8, 4)),
}


def second_few(inner: int) -> Tile:
    """Return the tile of the second layer for assignments that are not sorted.

    µs at one token with 64 and with 128 columns: 11.2 and 8.7 for Qwen3-30B-A3B (768 inside), 27.0 and 30.8
    for GLM-4.5-Air (1408).

    Parameters
    ----------
    inner : the width between both layers, in elements
    """
    return Tile(16, 64, 128, 4, 4) if inner > 1024 else Tile(16, 128, 128, 4, 3)


def rows_for(assignments: int, experts: int) -> int:
    """Return the rows of a tile: of 16 to 128 the least that is twice what an expert has on average."""
    return next((rows for rows in SORTED if 2 * assignments <= rows * experts), max(SORTED))


def fitting(tile: Tile, weights: int, element_size: int, memory: int) -> Tile:
    """Return a tile as it is for elements of that size, with as many stages as fit.

    Parameters
    ----------
    tile : for elements of two bytes
    weights : how many tiles of weights a program loads beside that of its rows
    element_size : in bytes
    memory : that a program may share, in bytes
    """
    depth = tile.depth * 2 // element_size
    stage = (tile.rows + weights * tile.columns) * depth * element_size
    return tile._replace(depth=depth, num_stages=max(1, min(tile.num_stages, memory // stage)))

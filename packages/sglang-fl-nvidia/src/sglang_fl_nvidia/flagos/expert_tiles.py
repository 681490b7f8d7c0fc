"""The tiles of the kernels of ``fused_moe``, as measured.

Measured on an H200 (bfloat16, triton 3.6, CUDA graphs of 8 and 24 calls on fresh inputs, medians of 5), each
kernel alone with 3 to 8 tiles, in the shapes of Qwen3-30B-A3B, GLM-4.5-Air and DeepSeek-V3 at tp 8, for 1 to
4096 tokens. Each tile here was the fastest of its kernel or within 3 % of it at nearly all of these. µs of a
whole layer of Qwen3-30B-A3B with 16 and 32 rows a tile at 256 tokens: 321 and 298; with 32 and 64 at 512: 339
and 316; with 64 and 128 at 1024: 378 and 370.
"""

from typing import NamedTuple

__all__ = ["Tile", "first_few", "fitting", "halvings", "rows_for", "second_few", "sorted_tiles"]


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


#: Assignments that are not sorted: the first layer, of tokens of few elements and of more; the second, of
#: few weights and of more.
FIRST_FEW, FIRST_FEW_WIDE = Tile(16, 32, 128, 4, 4), Tile(16, 32, 256, 4, 3)
SECOND_FEW, SECOND_FEW_LARGE = Tile(16, 128, 128, 4, 3), Tile(16, 128, 128, 8, 3)
#: Both layers, sorted assignments, by the rows of a tile.
SORTED = {
    16: (Tile(16, 32, 256, 4, 3), Tile(16, 128, 128, 4, 3)),
    32: (Tile(32, 64, 128, 4, 3), Tile(32, 128, 128, 4, 3)),
    64: (Tile(64, 64, 64, 4, 4), Tile(64, 128, 64, 4, 4)),
    128: (Tile(128, 128, 64, 8, 4), Tile(128, 256, 64, 8, 4)),
}
#: A matrix product has at least so many rows. An expert's last tile is computed with fewer than the others.
LEAST_ROWS, MOST_HALVINGS = 16, 2
#: The second layer of few rows where it sums up so much that its programs last long: fewer columns make more
#: of them.
LONG, SECOND_LONG = 8192, Tile(16, 64, 256, 4, 3)


def first_few(width: int) -> Tile:
    """Return the tile of the first layer for assignments that are not sorted; ``width`` of a token."""
    return FIRST_FEW_WIDE if width >= 4096 else FIRST_FEW


def second_few(width: int, inner: int) -> Tile:
    """Return the tile of the second layer for assignments that are not sorted.

    Parameters
    ----------
    width, inner : of a token and between both layers, in elements
    """
    if inner > LONG:
        return SECOND_LONG
    return SECOND_FEW_LARGE if width * inner > 2**22 else SECOND_FEW


def sorted_tiles(inner: int) -> dict[int, tuple[Tile, Tile]]:
    """Return the tiles of both layers for sorted assignments, by their rows; ``inner`` as before."""
    return SORTED | {16: (SORTED[16][0], SECOND_LONG)} if inner > LONG else SORTED


def halvings(rows: int) -> int:
    """Return how often the rows of an expert's last tile may be halved."""
    return min(MOST_HALVINGS, (rows // LEAST_ROWS).bit_length() - 1)


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

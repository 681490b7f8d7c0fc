"""The tiles of the kernels of ``fused_moe``, as ``benchmarks/sweep_experts.py`` found them on an H200.

The sweep lies in ``benchmarks/results/sweep_experts_h200.csv``: bfloat16, seven models' experts, 1 to 4096
tokens, the whole op timed. A tile that serves several is the fastest or within 3 % of it at nearly all.
"""

from typing import NamedTuple

__all__ = [
    "Tile",
    "first_few",
    "fitting",
    "group_for",
    "halvings",
    "rows_for",
    "second_few",
    "sorted_tiles",
]


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


#: Assignments that are not sorted, the first layer: of most tokens; of wide ones; of the widest, of which a
#: GPU has fewer programs than it could run, so that each needs much on its way at a time; and of those whose
#: width the others' depth does not divide.
FIRST_FEW = Tile(16, 32, 128, 4, 4)
FIRST_FEW_WIDE = Tile(16, 32, 256, 4, 3)
FIRST_FEW_WIDEST = Tile(16, 32, 256, 4, 5)
FIRST_FEW_ODD = Tile(16, 32, 64, 4, 6)
#: The second layer: of few weights, of more, and of a width inside that their depth does not divide.
SECOND_FEW = Tile(16, 128, 128, 4, 3)
SECOND_FEW_LARGE = Tile(16, 128, 128, 4, 4)
SECOND_FEW_ODD = Tile(16, 128, 128, 8, 3)
#: Both layers, sorted assignments, by the rows of a tile.
SORTED = {
    16: (Tile(16, 32, 256, 4, 3), Tile(16, 128, 128, 4, 3)),
    32: (Tile(32, 64, 128, 4, 3), Tile(32, 128, 128, 4, 3)),
    64: (Tile(64, 64, 64, 4, 4), Tile(64, 128, 64, 4, 4)),
    128: (Tile(128, 128, 64, 8, 4), Tile(128, 256, 64, 8, 4)),
}
#: Where the second layer sums up so much that its programs last long, fewer columns make more of them.
LONG, SECOND_LONG = 8192, Tile(16, 64, 256, 4, 4)
#: A matrix product has at least so many rows.
LEAST_ROWS = 16


def first_few(width: int) -> Tile:
    """Return the tile of the first layer for assignments that are not sorted; ``width`` of a token."""
    if width % FIRST_FEW.depth:
        return FIRST_FEW_ODD
    if width < 4096:
        return FIRST_FEW
    return FIRST_FEW_WIDEST if width > 4096 else FIRST_FEW_WIDE


def second_few(width: int, inner: int) -> Tile:
    """Return the tile of the second layer for assignments that are not sorted.

    Parameters
    ----------
    width, inner : of a token and between both layers, in elements
    """
    if inner > LONG:
        return SECOND_LONG
    if inner % SECOND_FEW.depth:
        return SECOND_FEW_ODD
    return SECOND_FEW_LARGE if width * inner > 2**22 else SECOND_FEW


def sorted_tiles(inner: int) -> dict[int, tuple[Tile, Tile]]:
    """Return the tiles of both layers for sorted assignments, by their rows; ``inner`` as before."""
    return SORTED | {16: (SORTED[16][0], SECOND_LONG)} if inner > LONG else SORTED


def halvings(rows: int, inner: int) -> int:
    """Return how often the rows of an expert's last tile may be halved; ``inner`` as before.

    Not where programs last long: the loop that can do both is slower there.
    """
    return int(rows > LEAST_ROWS and inner <= LONG)


def group_for(inner: int) -> int:
    """Return how many tiles take turns at the same weights; ``inner`` as before.

    With one, all pieces of a tile run beside each other. Where these are more than a GPU runs at a time, each
    tile of an expert would load all of its weights again.
    """
    return 16 if inner > LONG else 1


def rows_for(assignments: int, experts: int) -> int:
    """Return the rows of a tile: at least twice what an expert has on average, of 16 to 128."""
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

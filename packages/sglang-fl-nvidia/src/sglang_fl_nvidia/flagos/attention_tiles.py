"""The tiles of the kernels of attention, as ``benchmarks/sweep_attention.py`` found them on an H200.

The sweeps lie in ``benchmarks/results``: where a table serves several layers, the tile is the one that is
fastest in the geometric mean over all of them. Not swept: heads of 512 elements whose values are no part of
the keys, groups of 17 to 32 heads, and prompts of heads of 256 elements.

What counts in ``decode_attention`` is how many bytes of keys and values are on their way at a time: those of
``num_stages - 1`` tiles of each program, of which as many as ``per_multiprocessor`` should fit at once.
"""

from typing import NamedTuple

__all__ = [
    "DECODE",
    "DECODE_EIGHT_BIT",
    "DECODE_LATENT",
    "EXTEND",
    "MERGE",
    "MERGE_FEW",
    "MERGE_FEW_HEADS",
    "DecodeTile",
    "ExtendTile",
    "MergeTile",
    "decode_tile",
    "extend_tiles",
    "fitting",
    "ranges_for",
    "stages_that_fit",
]


class DecodeTile(NamedTuple):
    """What a program of ``decode_attention`` takes at a time, for elements of two bytes.

    Parameters
    ----------
    heads : query heads of one head of keys; at least 16, which is what a matrix product needs
    slots : keys and values
    num_warps, num_stages : of a program
    per_multiprocessor : programs that a multiprocessor runs at a time
    """

    heads: int
    slots: int
    num_warps: int
    num_stages: int
    per_multiprocessor: int


class ExtendTile(NamedTuple):
    """What a program of ``extend_attention`` takes at a time, for elements of two bytes.

    Parameters
    ----------
    rows : query heads of tokens
    keys : and values
    num_warps, num_stages : of a program
    """

    rows: int
    keys: int
    num_warps: int
    num_stages: int


class MergeTile(NamedTuple):
    """What a program that merges partial results takes at a time.

    Parameters
    ----------
    partials : of one head
    columns : elements of values
    num_warps : of a program
    """

    partials: int
    columns: int
    num_warps: int


#: By the most elements of keys and of values that a program has.
DECODE = {
    64: DecodeTile(16, 128, 4, 3, 2),
    128: DecodeTile(16, 64, 8, 3, 2),
    256: DecodeTile(16, 32, 4, 3, 2),
    512: DecodeTile(16, 32, 8, 2, 1),
}
#: The same for pools in 8 bit, swept for 128 elements: half the bytes leave memory for larger tiles.
DECODE_EIGHT_BIT = {
    64: DecodeTile(16, 128, 4, 4, 2),
    128: DecodeTile(16, 128, 4, 3, 2),
    256: DecodeTile(16, 32, 4, 4, 2),
    512: DecodeTile(16, 32, 8, 2, 1),
}
#: Where values are the first part of the keys: by the most query heads that a program has.
DECODE_LATENT = {
    16: DecodeTile(16, 32, 4, 3, 2),
    32: DecodeTile(32, 32, 8, 3, 1),
    64: DecodeTile(64, 64, 8, 3, 1),
}
#: By the most elements of keys and of values that a program has: for sequences of few rows, and of many.
EXTEND = {
    64: (ExtendTile(64, 128, 4, 3),),
    128: (ExtendTile(64, 32, 4, 3), ExtendTile(128, 64, 8, 3)),
    256: (ExtendTile(64, 32, 4, 3), ExtendTile(128, 32, 8, 3)),
    512: (ExtendTile(64, 32, 8, 2),),
}
#: Up to so many heads of all sequences there are few, and the parts of one are shared by several programs.
MERGE_FEW_HEADS = 512
MERGE_FEW, MERGE = MergeTile(64, 32, 4), MergeTile(8, 128, 2)
#: Of the places that a GPU has for programs, the part that is to be filled until the last program is done;
#: and how many times over they are filled at most for that.
FILLED, MOST_WAVES = 0.95, 4


def decode_tile(lanes: int, group: int, is_latent: bool, is_eight_bit: bool) -> DecodeTile:
    """Return the tile of ``decode_attention``.

    Parameters
    ----------
    lanes : elements of a head of keys or of values, whichever has more; a power of two
    group : query heads of a head of keys
    is_latent : the values are the first part of the keys
    is_eight_bit : the pools are
    """
    if is_latent:
        return DECODE_LATENT[next((heads for heads in DECODE_LATENT if group <= heads), max(DECODE_LATENT))]
    table = DECODE_EIGHT_BIT if is_eight_bit else DECODE
    return table[next((size for size in table if lanes <= size), max(table))]


def extend_tiles(lanes: int) -> tuple[ExtendTile, ...]:
    """Return the tiles of ``extend_attention``, that for the fewest rows first; ``lanes`` as before."""
    return EXTEND[next((size for size in EXTEND if lanes <= size), max(EXTEND))]


def fitting(tile: ExtendTile, element_size: int) -> ExtendTile:
    """Return a tile as it is for elements of so many bytes."""
    return tile._replace(rows=tile.rows * 2 // element_size, keys=max(16, tile.keys * 2 // element_size))


def ranges_for(blocks: int, places: int) -> int:
    """Return into how many ranges of equal work the slots of a batch are cut.

    Parameters
    ----------
    blocks : programs for each range, one for each block of heads
    places : programs that a GPU runs at a time
    """
    found = [max(1, waves * places // blocks) for waves in range(1, MOST_WAVES + 1)]
    filled = {ranges: ranges * blocks / (-(-ranges * blocks // places) * places) for ranges in found}
    return next((ranges for ranges in found if filled[ranges] >= FILLED), max(found, key=filled.__getitem__))


def stages_that_fit(wanted: int, stage: int, beside: int, memory: int) -> int:
    """Return how many stages of a pipeline fit, at least one.

    Parameters
    ----------
    wanted : at most
    stage, beside : bytes of each stage, and of what lies beside them
    memory : bytes that a program may share
    """
    return max(1, min(wanted, (memory - beside) // stage))

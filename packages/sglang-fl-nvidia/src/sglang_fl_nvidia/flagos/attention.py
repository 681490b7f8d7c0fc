"""What the kernels of attention over a paged pool share: ranges of sequences, scores, sizes of tiles, dtypes.

Sequences lie one after the other, and only the device knows where each begins. They are cut into tiles in a
way that needs no list: tile ``(begin - first) // TILE + number`` is the first one of sequence ``number``.
Each sequence then has as many tiles as it needs and at most one more, which is empty.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import shares_memory
from sglang_fl_nvidia.flagos.launch import DTYPES, capability

__all__ = [
    "LOG2E",
    "Lanes",
    "in_half",
    "inside",
    "log_of",
    "place_of_result",
    "require_dtypes",
    "scaled",
    "sequence_of",
    "temperatures",
    "tile_of",
]

#: Scores are in units of the logarithm to base two, of which the chip has the exponential.
LOG2E = tl.constexpr(1.4426950408889634)
#: Elements of a head of keys, without what is past a power of two, and of values: more were not tried.
MOST_LANES = 512
#: The dtypes of 8 bit that pools may have, and the compute capability from which on Triton converts each.
EIGHT_BIT = {torch.float8_e4m3fn: (8, 9), torch.float8_e5m2: (0, 0)}
#: A matrix product needs as many elements of each axis.
LEAST_LANES = 16


@triton.jit
def tile_of(bound, first, number, TILE: tl.constexpr) -> Any:
    """Return the first tile of a sequence that begins at ``bound``, the first sequence at ``first``."""
    return (bound - first) // TILE + number


@triton.jit
def sequence_of(indptr_ptr, first, tile, sequences, SIZE: tl.constexpr, TILE: tl.constexpr) -> Any:
    """Return the number of the sequence that has a tile.

    Parameters
    ----------
    indptr_ptr : where the sequences begin
    first : where the first one does, times ``SIZE``
    tile : its number
    sequences : their number, at least one
    SIZE : rows of a tile for each token of a sequence
    TILE : rows of a tile
    """
    PLACES: tl.constexpr = 128
    before = 0
    for start in range(0, sequences, PLACES):
        number = start + tl.arange(0, PLACES)
        is_one = number < sequences
        bound = tl.load(indptr_ptr + number, mask=is_one, other=0).to(tl.int32) * SIZE
        begins = is_one & (tile_of(bound, first, number, TILE) <= tile)
        before += tl.sum(begins.to(tl.int32), 0)
    return before - 1


@triton.jit
def scaled(products, scale, cap, HAS_CAP: tl.constexpr) -> Any:
    """Return scores of products of queries and keys, in units of the logarithm to base two."""
    if HAS_CAP:
        # tanh(x) is 1 - 2 / (exp(2 x) + 1), also where the exponential is infinite.
        grown = tl.exp2(products * (2.0 * LOG2E * scale / cap))
        scores = (cap * LOG2E) * (1.0 - 2.0 / (grown + 1.0))
    else:
        scores = products * (scale * LOG2E)
    return scores


@triton.jit
def temperatures(place, LOG_LEN: tl.constexpr) -> Any:
    """Return what the scores of queries are multiplied by; without temperatures nobody looks at it.

    Parameters
    ----------
    place : (rows,), how many keys stand before a query's own; the logarithm of none is -inf
    LOG_LEN : as of ``log_of``
    """
    return tl.maximum(tl.log2(place.to(tl.float32)) / LOG_LEN, 1.0) if LOG_LEN > 0 else place


@triton.jit
def in_half(q, q_rest, IS_EIGHT_BIT: tl.constexpr) -> Any:
    """Return queries in float16, and by how much each row was divided for that, where keys are in 8 bit.

    Keys of both 8-bit dtypes fit into float16, one instruction for two of them; to bfloat16 they take four
    (sm_90), which took longer than to read them. Queries in bfloat16 have more range than float16, so each
    row is divided by the power of two in its largest element: all bits stay, but of elements 2**17 times
    smaller than that, whose part in a score is below the rounding of the rest.

    Parameters
    ----------
    q, q_rest : (rows, lanes), both parts of each row
    IS_EIGHT_BIT : whether keys are; where not, or where queries are not in bfloat16, all stays as it is
    """
    unit = 1.0
    if IS_EIGHT_BIT and q.dtype == tl.bfloat16:
        most = tl.maximum(tl.max(tl.abs(q.to(tl.float32)), 1), tl.max(tl.abs(q_rest.to(tl.float32)), 1))
        exponent = most.to(tl.int32, bitcast=True) & 0x7F800000
        power = exponent.to(tl.float32, bitcast=True)
        power = tl.where((exponent == 0) | (exponent == 0x7F800000), 1.0, power)
        inverse = (1.0 / power)[:, None]
        q = (q.to(tl.float32) * inverse).to(tl.float16)
        q_rest = (q_rest.to(tl.float32) * inverse).to(tl.float16)
        unit = power[:, None]
    return q, q_rest, unit


@triton.jit
def inside(is_row, lane, COUNT: tl.constexpr, LANES: tl.constexpr) -> Any:
    """Return which elements of rows are to be loaded; all of a row where it fills its lanes.

    Parameters
    ----------
    is_row : (rows,), whether a row is
    lane : (lanes,), numbers of elements
    COUNT : of a row
    LANES : one more than the last number
    """
    return is_row[:, None] if LANES <= COUNT else is_row[:, None] & (lane < COUNT)[None, :]


class Lanes(NamedTuple):
    """How a head of keys and one of values are laid out in tiles, whose sizes are powers of two.

    Parameters
    ----------
    main, rest : of the keys: 576 are 512 and 64, and ``rest`` may be 0
    values : of the values
    """

    main: int
    rest: int
    values: int

    @classmethod
    def of(cls, keys: int, values: int, *pools: Tensor) -> "Lanes":
        """Return the layout for heads of so many elements in these pools.

        Raises
        ------
        UnsupportedError : the kernels here do not take such heads, or heads that do not lie dense in a pool
        """
        if any(pool.stride(2) != 1 for pool in pools):
            raise UnsupportedError("it takes pools whose heads are dense")
        main = max(LEAST_LANES, 1 << (keys.bit_length() - 1))
        rest = keys - main
        found = cls(main, _lanes(rest) if rest > 0 else 0, _lanes(values))
        if found.most > MOST_LANES:
            raise UnsupportedError(f"it takes at most 1023 keys and 512 values, not {keys} and {values}")
        return found

    @property
    def most(self) -> int:
        """The most elements of keys or values."""
        return max(self.main, self.values)

    def constants(self) -> dict[str, int]:
        """Return them by the names that kernels have for them."""
        return dict(zip(("MAIN", "REST", "VALUE_LANES"), self, strict=True))


def _lanes(elements: int) -> int:
    return max(LEAST_LANES, int(triton.next_power_of_2(elements)))


def require_dtypes(pools: tuple[Tensor, Tensor], *tensors: Tensor) -> None:
    """Raise ``UnsupportedError`` unless all are of one dtype that the kernels here compute with.

    The two pools may both be in 8 bit instead, where the GPU can convert that.
    """
    of_pools = {pool.dtype for pool in pools}
    dtypes = {tensor.dtype for tensor in tensors} | (of_pools if of_pools - EIGHT_BIT.keys() else set())
    if len(dtypes) > 1 or len(of_pools) > 1 or not dtypes <= set(DTYPES):
        named = ", ".join(sorted(map(str, dtypes | of_pools)))
        raise UnsupportedError(
            f"it takes queries, keys and values in one dtype, float16, bfloat16 or float32, and pools in it, "
            f"in float8_e4m3fn or in float8_e5m2, not {named}"
        )
    (of_pool,) = of_pools
    since, device = EIGHT_BIT.get(of_pool), pools[0].get_device()
    if since is not None and device >= 0 and capability(device) < since:
        raise UnsupportedError(f"this GPU does not convert {of_pool}")


def log_of(temperature_len: int) -> float:
    """Return the logarithm to base two that temperatures are made with; 0 where there are none."""
    return math.log2(temperature_len) if temperature_len else 0.0


def place_of_result(out: Tensor | None, shape: tuple[int, ...], q: Tensor, *others: Tensor) -> Tensor:
    """Return where results go: ``out`` where the kernels can write it and its memory is its own, else new.

    Parameters
    ----------
    out : what the caller has for them; one of another shape or dtype is refused later, with the contract's
        check
    shape : of the results
    q, others : the arguments of the call
    """
    is_taken = out is not None and out.shape == shape and out.stride(-1) == 1 and _is_own(out, q, *others)
    return out if out is not None and is_taken else q.new_empty(shape)


def _is_own(out: Tensor, *others: Tensor) -> bool:
    """Whether no element of a tensor is also another one, of it or of others.

    Strides are looked at where another one begins in its storage, of which a new tensor has one for itself.
    """
    storage = out.untyped_storage()
    begin = storage.data_ptr()
    end = begin + storage.nbytes()
    for other in others:
        if begin <= other.data_ptr() < end:
            return not shares_memory(out, *others)
    return out.is_contiguous() or not shares_memory(out)

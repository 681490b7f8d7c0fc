"""What the kernels of the gated delta rule share: the step on a tile of a state, and which tile that is.

A state of a value head is a matrix of values times keys (128 x 128 in Qwen3-Next: 64 KB in float32). Each
row, one value, goes its own way, so a program has a few rows of one head with all their keys. A step reads
and writes the whole state and does little with it: what counts is how many bytes are on their way at a time.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl_nvidia.flagos.launch import DTYPES, Launch, compiled, constants_of, multiprocessors
from sglang_fl_nvidia.flagos.memory import has_dense_rows

__all__ = ["Pool", "Tiled", "decay_and_rate", "step", "tiled", "unit"]

#: Elements of a state that a program has, and its warps: with few states, so that those of one request are on
#: all multiprocessors (512 programs in Qwen3-Next), and with many, where less is loaded beside the states and
#: fewer programs are begun. One warp has all keys of a row: it sums over them without waiting for another.
#: The elements fill 32 and 64 registers of each thread; with 128 it would need all that it can have.
FEW_TILE, MANY_TILE = (1024, 1), (2048, 1)
#: Programs of the small tile for each multiprocessor up to which there are few: as many run at a time.
MOST_FEW = 24
#: The keys of a row must fit into a program.
MOST_KEYS = 1024
#: Under the root of the length of query and key.
EPS = tl.constexpr(1e-6)


@triton.jit
def unit(x) -> Any:
    """Scale a row (1, keys) to unit length."""
    return x * tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) + EPS)


@triton.jit
def decay_and_rate(a, b, log_rate, bias) -> Any:
    """Return what a step multiplies the state by, and how much of the difference it adds."""
    x = a + bias
    softplus = tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))
    return tl.exp(-tl.exp(log_rate) * softplus), tl.sigmoid(b)


@triton.jit
def step(state, q, k, v, decay, rate) -> Any:
    """Take a step with some rows of a state.

    The result is that of the new state, ``(S + d k^T) q = S q + d (k q)``: so both sums over the old one are
    formed at once, and only numbers of rows wait for them.

    Parameters
    ----------
    state : (rows, keys), float32
    q, k : (1, keys)
    v : (rows,)
    decay, rate : numbers

    Returns
    -------
    (state, result) : (rows, keys) and (rows,)
    """
    state = state * decay
    held, told = tl.sum(state * k, axis=1), tl.sum(state * q, axis=1)
    change = rate * (v - held)
    # Numbers of rows are one-dimensional: (rows, 1) would be loaded as often as a thread has keys.
    return state + change[:, None] * k, told + change * tl.sum(q * k)


class Pool(NamedTuple):
    """How a pool of states lies: what kernels are compiled for.

    Parameters
    ----------
    slot_stride : elements from one state to the next
    heads, values, keys : of a state
    """

    slot_stride: int
    heads: int
    values: int
    keys: int

    @classmethod
    def of(cls, states: Tensor) -> "Pool":
        """Return the layout of a pool (slots, heads, values, keys).

        Raises
        ------
        UnsupportedError : a state is not dense, or has too many keys
        """
        _, heads, values, keys = states.shape
        if keys > MOST_KEYS:
            raise UnsupportedError(f"it takes at most {MOST_KEYS} keys, not {keys}")
        if not has_dense_rows(states):
            raise UnsupportedError(f"it takes states that are dense, not with strides {states.stride()[1:]}")
        return cls(states.stride(0), heads, values, keys)

    def constants(self) -> dict[str, int]:
        """Return them by the names that kernels have for them."""
        names = ("SLOT_STRIDE", "VALUE_HEADS", "VALUES", "KEYS")
        return dict(zip(names, self, strict=True)) | {"LANES": triton.next_power_of_2(self.keys)}


class Tiled(NamedTuple):
    """A kernel of steps for few states and for many.

    Parameters
    ----------
    few, many : launches
    few_blocks, many_blocks : programs for each state
    most : states up to which there are few
    """

    few: Launch
    many: Launch
    few_blocks: int
    many_blocks: int
    most: int

    def launch(self, states: int, *arguments: Any) -> None:
        """Run the kernel on so many states, all heads of them."""
        if states > self.most:
            self.many(states * self.many_blocks, *arguments)
        else:
            self.few(states * self.few_blocks, *arguments)


def tiled(kernel: Any, arguments: tuple[Any, ...], pool: Pool, is_aligned: bool, **constants: int) -> Tiled:
    """Compile a kernel of steps.

    Parameters
    ----------
    kernel : with the constants of ``Pool``, and ``ROWS`` of a state for each program
    arguments, is_aligned : see ``compiled``
    pool : of the states
    constants : the others

    Raises
    ------
    UnsupportedError : another dtype, tensors on the CPU or on several devices
    """
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    if not dtypes <= set(DTYPES):
        named = ", ".join(sorted(map(str, dtypes)))
        raise UnsupportedError(f"it computes with float16, bfloat16 and float32, not with {named}")
    known = constants | pool.constants()

    def of(tile: tuple[int, int]) -> tuple[Launch, int]:
        elements, warps = tile
        rows = min(max(1, elements // known["LANES"]), triton.next_power_of_2(max(1, pool.values)))
        known["ROWS"] = rows
        launch = compiled(
            *(kernel, *arguments),
            is_aligned=is_aligned,
            num_warps=warps,
            **constants_of(kernel, known),
        )
        return launch, pool.heads * triton.cdiv(pool.values, rows)

    (few, few_blocks), (many, many_blocks) = of(FEW_TILE), of(MANY_TILE)
    most = MOST_FEW * multiprocessors(tensors[0].get_device()) // max(1, few_blocks)
    return Tiled(few, many, few_blocks, many_blocks, most)

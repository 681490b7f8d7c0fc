"""``chunk_gated_delta_rule`` in three Triton kernels, from the pool and back to it."""

import sys
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops.chunk_gated_delta_rule import CHUNK_SIZE, check_chunks
from sglang_fl_nvidia.flagos.delta_rule import Pool
from sglang_fl_nvidia.flagos.delta_rule_chunks import results_kernel, states_kernel, without_states_kernel
from sglang_fl_nvidia.flagos.launch import (
    DTYPES,
    Launch,
    address,
    compiled,
    constants_of,
    multiprocessors,
    shared_memory,
)
from sglang_fl_nvidia.flagos.memory import strides_of

__all__ = ["chunk_gated_delta_rule"]


class Walk(NamedTuple):
    """What a program takes that walks from chunk to chunk of a sequence.

    Parameters
    ----------
    values : of one head's state
    warps, stages : of the program, which loads ``stages - 1`` chunks ahead
    most : for how many programs of each multiprocessor it is
    """

    values: int
    warps: int
    stages: int
    most: int = sys.maxsize


#: In 16 bit with at most 128 keys; the first that is for so many programs. Chunks come one after the other,
#: so that small programs that load far ahead are fastest, as long as each multiprocessor has one at most.
#: Where there are more the largest is, since each program reads all keys of its chunks. See
#: ``benchmarks/results/sweep_chunks_h200.csv``.
WALKS = (Walk(16, 4, 4, most=1), Walk(32, 4, 4, most=1), Walk(64, 4, 3))
#: For more keys, for float32 and for GPUs with less memory for a program than the largest of these needs.
NARROW, NEEDED = Walk(32, 4, 3), 144 << 10
#: Values that a program of the other kernels has, its warps and its stages.
WITHOUT_STATES, RESULTS = (64, 4, 3), (64, 4, 3)
#: Float32 as a sum of products in TF32: of products as they are Triton's compiler makes so much code that it
#: takes minutes. What 16-bit dtypes have in float32 is rounded to them after the next product.
PRECISIONS = {torch.float32: "tf32x3", torch.float16: "tf32", torch.bfloat16: "tf32"}
#: The most stages; in float32 more than two do not fit.
MOST_STAGES = {torch.float32: 2, torch.float16: 4, torch.bfloat16: 4}
#: The keys of a chunk must fit into the memory of a program, beside what is computed from them.
MOST_KEYS = {torch.float32: 128, torch.float16: 256, torch.bfloat16: 256}
#: Lanes for keys. With 32 of them in 16 bit what Triton 3.6 compiles reads memory that is not the program's
#: (H200); with 64, of which some may be empty, it does not.
LEAST_LANES = 64


class _Launches(NamedTuple):
    """The kernels; of walks up to how many sequences each is for, and its programs for one of them."""

    without_states: Launch
    walks: tuple[tuple[int, Launch, int], ...]
    results: Launch
    result_blocks: int


_launches: dict[tuple[Any, ...], _Launches] = {}


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor,
    initial_state_indices: Tensor,
    cu_seqlens: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """See ``sglang_fl.ops.chunk_gated_delta_rule``.

    Beside the results it takes memory for ``k``, for ``g``, and for each value head for ``v`` and for ``k``.

    Raises
    ------
    ContractError : as the contract says
    UnsupportedError : another dtype than float16, bfloat16 and float32, states that are not dense or have
        more than 256 keys (in float32 128), tensors on the CPU or on several devices
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    tensors = (q, k, v, g, beta, initial_state, initial_state_indices, cu_seqlens)
    # All else is read number by number, wherever it begins.
    is_aligned = (q.data_ptr() | k.data_ptr() | v.data_ptr() | initial_state.data_ptr()) % 16 == 0
    (tokens, value_heads), sequences = v.shape[1:3], initial_state_indices.shape[0]
    shared = (
        is_aligned,
        *((x.stride()[2:], x.shape[2:], x.shape[:2] == (1, tokens)) for x in (q, k, v, g, beta)),
        *(initial_state.stride(), initial_state.shape),
        *(strides_of(initial_state_indices, sequences), cu_seqlens.stride()),
        len(cu_seqlens) == sequences + 1,
        *((tensor.dtype, tensor.device) for tensor in tensors),
    )
    # From one token to the next it is any number where there is one.
    key = shared, tuple(x.stride()[1:2] for x in (q, k, v, g, beta)) if tokens > 1 else None
    found = _launches.get(key)
    if found is None:
        check_chunks(*tensors)
        found = _launches[key] = _compiled(tensors, is_aligned)
        _launches.setdefault((shared, None), found)
    # As many chunks as the host knows without looking: each sequence may end in one that is not full, and so
    # may what is in none.
    chunks = tokens // CHUNK_SIZE + sequences + 1
    out, changes = q.new_empty(v.shape), q.new_empty(v.shape)
    weights = q.new_empty((tokens, value_heads, k.shape[-1]))
    keys, decays = k.new_empty(k.shape), k.new_empty(g.shape, dtype=torch.float32)
    before = k.new_empty((1, chunks, *initial_state.shape[1:]))
    if out.numel():
        q_at, k_at, v_at, g_at, beta_at, state_at, index_at, bounds_at = map(address, tensors)
        of_tokens = address(keys), address(decays)
        change_at, weight_at, before_at = address(changes), address(weights), address(before)
        if sequences:
            found.without_states(
                chunks * value_heads,
                *(k_at, v_at, g_at, beta_at, bounds_at, *of_tokens, change_at, weight_at, sequences),
            )
            given = *of_tokens, state_at, index_at, bounds_at, change_at, weight_at, before_at
            for most, walk, programs in found.walks:
                if sequences <= most:
                    walk(sequences * programs, *given)
                    break
        found.results(
            chunks * value_heads * found.result_blocks,
            *(q_at, *of_tokens, index_at, bounds_at, change_at, before_at, address(out)),
            *(sequences, tokens, scale),
        )
    return out, before


def _compiled(tensors: tuple[Tensor, ...], is_aligned: bool) -> _Launches:
    q, k, v, g, beta, states, indices, bounds = tensors
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    if not dtypes <= set(DTYPES):
        named = ", ".join(sorted(map(str, dtypes)))
        raise UnsupportedError(f"it computes with float16, bfloat16 and float32, not with {named}")
    pool = Pool.of(states)
    if pool.keys > MOST_KEYS[q.dtype]:
        raise UnsupportedError(f"in {q.dtype} it takes at most {MOST_KEYS[q.dtype]} keys, not {pool.keys}")
    known: dict[str, Any] = {
        **pool.constants(),
        "LANES": max(LEAST_LANES, triton.next_power_of_2(pool.keys)),
        "Q_STRIDE": q.stride(1),
        "Q_HEAD": q.stride(2),
        "K_STRIDE": k.stride(1),
        "K_HEAD": k.stride(2),
        "V_STRIDE": v.stride(1),
        "V_HEAD": v.stride(2),
        "G_STRIDE": g.stride(1),
        "G_HEAD": g.stride(2),
        "BETA_STRIDE": beta.stride(1),
        "BETA_HEAD": beta.stride(2),
        "BOUNDS_STRIDE": bounds.stride(0),
        "INDEX_STRIDE": strides_of(indices, len(indices))[0],
        "HEADS": q.shape[2],
        "PRECISION": PRECISIONS[q.dtype],
    }

    def of(kernel: Any, values: int, warps: int, stages: int, *arguments: Any) -> tuple[Launch, int]:
        block = max(16, min(values, triton.next_power_of_2(pool.values)))
        constants = constants_of(kernel, known | {"BLOCK": block})
        launch = compiled(
            *(kernel, *arguments),
            is_aligned=is_aligned,
            num_warps=warps,
            num_stages=min(stages, MOST_STAGES[q.dtype]),
            **constants,
        )
        return launch, triton.cdiv(pool.values, block)

    decays = q.new_empty(1, dtype=torch.float32)
    without, _ = of(without_states_kernel, *WITHOUT_STATES, k, v, g, beta, bounds, k, decays, q, q, 1)
    results, result_blocks = of(results_kernel, *RESULTS, q, k, decays, indices, bounds, q, k, q, 1, 1, 1.0)
    device, walks = q.get_device(), []
    is_wide = q.dtype is not torch.float32 and known["LANES"] <= 128 and shared_memory(device) >= NEEDED
    for walk in WALKS if is_wide else (NARROW,):
        *tile, most = walk
        launch, blocks = of(states_kernel, *tile, k, decays, states, indices, bounds, q, q, k)
        programs = blocks * pool.heads
        walks.append((most * multiprocessors(device) // max(1, programs), launch, programs))
    return _Launches(without, tuple(walks), results, result_blocks)

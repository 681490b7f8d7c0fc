"""The kernel of the routers: scores, the best groups, and the best experts of each token in one pass."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglang_fl.errors import ContractError, UnsupportedError
from sglang_fl_nvidia.flagos.launch import DTYPES, Launch, address, compiled, overlap

__all__ = ["choose_experts"]

#: The scores of a token must fit into a warp's registers.
MOST_EXPERTS = 2048
#: Each group is compared with each other.
MOST_GROUPS = 64
#: Experts, padding included, up to which a program takes several tokens, and how many. µs at 16384 tokens
#: with one and with four (H200): 8 of 128 experts 20.6 and 10.0, 8 of 256 in groups 20.3 and 24.5.
FEW_EXPERTS, MANY_TOKENS = 128, 4
#: As the reference (``sglang_fl.ops.shared.routing``): defined where all chosen scores have underflowed.
TINY = tl.constexpr(1e-20)
#: Smaller than any key, and larger than the number of any expert.
NEVER, NOBODY = tl.constexpr(-(2**31)), tl.constexpr(2**31 - 1)


@triton.jit
def _key(value):
    """Return an int32 for a float32, in the same order: those a warp reduces in one instruction.

    A NaN with every bit set would be as small as ``NEVER``.
    """
    bits = value.to(tl.int32, bitcast=True)
    return tl.maximum(bits ^ ((bits >> 31) & 0x7FFFFFFF), NEVER + 1)


@triton.jit
def _value(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _best_two(best, second, other_best, other_second):
    least = tl.minimum(best, other_best)
    return tl.maximum(best, other_best), tl.maximum(least, tl.maximum(second, other_second))


@triton.jit
def _is_in_best_groups(
    keys, COUNTS_TWO: tl.constexpr, GROUPS: tl.constexpr, CHOSEN_GROUPS: tl.constexpr, BLOCKS: tl.constexpr
):
    """Say for each group of ``keys`` (tokens, groups, members) whether it is one of the best."""
    if COUNTS_TWO:
        best, second = tl.reduce((keys, tl.full(keys.shape, NEVER, tl.int32)), 2, _best_two, keep_dims=True)
        worth = _key(_value(best) + _value(second))
    else:
        worth = tl.max(keys, axis=2, keep_dims=True)
    group, other = tl.arange(0, BLOCKS)[None, :, None], tl.arange(0, BLOCKS)[None, None, :]
    worth = tl.where(group < GROUPS, worth, NEVER)
    of_other = tl.permute(worth, (0, 2, 1))
    is_before = (of_other > worth) | ((of_other == worth) & (other < group))
    return tl.sum(is_before.to(tl.int32), axis=2, keep_dims=True) < CHOSEN_GROUPS


@triton.jit
def _scores(logits, exists, IS_SOFTMAX: tl.constexpr):
    """Return scores, and what a logit is to be lowered by and its power to be divided by to get one."""
    if IS_SOFTMAX:
        highest = tl.max(tl.where(exists, logits, -float("inf")), axis=1, keep_dims=True)
        powers = tl.exp(logits - highest)
        total = tl.sum(tl.where(exists, powers, 0.0), axis=1, keep_dims=True)
        scores = powers / total
    else:
        scores, highest, total = tl.sigmoid(logits), 0.0, 1.0
    return scores, highest, total


@triton.jit(do_not_specialize=["tokens", "factor", "shared_weight"])
def routing_kernel(
    logits_ptr,
    bias_ptr,
    weights_ptr,
    ids_ptr,
    tokens,
    factor,
    shared_weight,
    STRIDE: tl.constexpr,
    BIAS_STRIDE: tl.constexpr,
    TOP_K: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUPS: tl.constexpr,
    CHOSEN_GROUPS: tl.constexpr,
    GROUP_BLOCKS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    IS_SOFTMAX: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RENORMALIZES: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Route a few tokens. Groups and the members of one are padded to powers of two.

    One column more than are chosen is the shared expert's.
    """
    BLOCK: tl.constexpr = GROUP_BLOCKS * GROUP_BLOCK
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
    number = tl.arange(0, BLOCK)[None, :]
    group, member = number // GROUP_BLOCK, number % GROUP_BLOCK
    expert = group * GROUP_SIZE + member
    exists = (group < GROUPS) & (member < GROUP_SIZE)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + expert * BIAS_STRIDE, mask=exists, other=0.0).to(tl.float32)
    overlap(OVERLAP)
    row = logits_ptr + token * STRIDE
    logits = tl.load(row + expert, mask=exists & (token < tokens), other=0.0).to(tl.float32)
    scores, highest, total = _scores(logits, exists, IS_SOFTMAX)
    if HAS_BIAS:
        scores += bias
    keys = tl.where(exists, _key(scores), NEVER)
    if CHOSEN_GROUPS < GROUPS:
        grouped = tl.reshape(keys, (TOKENS, GROUP_BLOCKS, GROUP_BLOCK))
        counts_two: tl.constexpr = HAS_BIAS and GROUP_SIZE > 1
        is_best = _is_in_best_groups(grouped, counts_two, GROUPS, CHOSEN_GROUPS, GROUP_BLOCKS)
        keys = tl.reshape(tl.where(is_best, grouped, NEVER), (TOKENS, BLOCK))
    place = tl.arange(0, BLOCK_K)[None, :]
    chosen = tl.zeros([TOKENS, BLOCK_K], dtype=tl.int32)
    chosen_keys = tl.zeros([TOKENS, BLOCK_K], dtype=tl.int32)
    for turn in tl.static_range(TOP_K):
        best = tl.max(keys, axis=1, keep_dims=True)
        first = tl.min(tl.where(keys == best, number, NOBODY), axis=1, keep_dims=True)
        chosen = tl.where(place == turn, first, chosen)
        chosen_keys = tl.where(place == turn, best, chosen_keys)
        keys = tl.where(number == first, NEVER, keys)
    ids = chosen // GROUP_BLOCK * GROUP_SIZE + chosen % GROUP_BLOCK
    kept = (place < TOP_K) & (token < tokens)
    weights = _value(chosen_keys)
    if HAS_BIAS:  # the key holds the biased score
        chosen_logits = tl.load(row + ids, mask=kept, other=0.0).to(tl.float32)
        weights = tl.exp(chosen_logits - highest) / total if IS_SOFTMAX else tl.sigmoid(chosen_logits)
    if RENORMALIZES:
        weights /= tl.sum(tl.where(place < TOP_K, weights, 0.0), axis=1, keep_dims=True) + TINY
    weights *= factor
    if COLUMNS > TOP_K:
        weights = tl.where(place == TOP_K, shared_weight, weights)
        ids = tl.where(place == TOP_K, GROUPS * GROUP_SIZE, ids)
    written = (place < COLUMNS) & (token < tokens)
    tl.store(weights_ptr + token * COLUMNS + place, weights, mask=written)
    tl.store(ids_ptr + token * COLUMNS + place, ids, mask=written)


#: A launch, and the tokens of each program.
_Routing = tuple[Launch, int]

_launches: dict[tuple[object, ...], _Routing] = {}


def choose_experts(
    router_logits: Tensor,
    top_k: int,
    renormalize: bool,
    correction_bias: Tensor | None,
    num_expert_group: int | None,
    topk_group: int | None,
    routed_scaling_factor: float,
    shared_expert_weight: float | None,
    is_softmax: bool,
) -> tuple[Tensor, Tensor]:
    """Choose the experts of each token; see ``sglang_fl.ops.topk_softmax``.

    Of equal scores that of the lower number is chosen.

    Raises
    ------
    ContractError : groups, ``top_k`` or bias do not fit the experts
    UnsupportedError : another dtype, more than 2048 experts, padding included, or more than 64 groups
    """
    tokens, experts = router_logits.shape
    if router_logits.stride(1) != 1:
        router_logits = router_logits.contiguous()
    columns = top_k if shared_expert_weight is None else top_k + 1
    weights = router_logits.new_empty((tokens, columns), dtype=torch.float32)
    ids = router_logits.new_empty((tokens, columns), dtype=torch.int32)
    if tokens == 0:
        return weights, ids
    # Not made contiguous: the kernel loads it before the copy would be known to be done.
    bias = router_logits if correction_bias is None else correction_bias
    is_aligned = (router_logits.data_ptr() | bias.data_ptr()) % 16 == 0
    stride = router_logits.stride(0) if tokens > 1 else experts
    key = (
        *(
            router_logits.dtype,
            experts,
            stride,
            top_k,
            columns,
            renormalize,
            correction_bias is None,
            bias.dtype,
            bias.shape if correction_bias is not None else None,
            bias.stride(-1),
        ),
        *(num_expert_group, topk_group, is_softmax, is_aligned, router_logits.device, bias.device),
    )
    found = _launches.get(key)
    if found is None:
        # Without groups the number of those to choose says nothing; with them it must be given.
        groups = (1, 1) if num_expert_group is None else (num_expert_group, topk_group or 0)
        _check(router_logits, top_k, correction_bias, *groups)
        found = _launches[key] = _compiled(
            (router_logits, bias, weights, ids, tokens, 1.0, 1.0),
            is_aligned,
            _constants(experts, stride, bias.stride(-1), top_k, columns, *groups),
            (is_softmax, correction_bias is not None, renormalize),
        )
    launch, tokens_each = found
    launch(
        -(-tokens // tokens_each),
        *(address(router_logits), address(bias), address(weights), address(ids)),
        *(tokens, float(routed_scaling_factor), float(shared_expert_weight or 0.0)),
    )
    return weights, ids


def _compiled(
    arguments: tuple[Any, ...], is_aligned: bool, constants: dict[str, int], flags: tuple[bool, bool, bool]
) -> _Routing:
    padded = constants["GROUP_BLOCKS"] * constants["GROUP_BLOCK"]
    tokens_each = MANY_TOKENS if padded <= FEW_EXPERTS else 1
    return compiled(
        routing_kernel,
        *arguments,
        is_aligned=is_aligned,
        num_warps=tokens_each,  # a warp for each token
        **constants,
        TOKENS=tokens_each,
        **dict(zip(("IS_SOFTMAX", "HAS_BIAS", "RENORMALIZES"), flags, strict=True)),
    ), tokens_each


def _constants(
    experts: int, stride: int, bias_stride: int, top_k: int, columns: int, groups: int, chosen_groups: int
) -> dict[str, int]:
    size = experts // groups
    return {
        "STRIDE": stride,
        "BIAS_STRIDE": bias_stride,
        "TOP_K": top_k,
        "COLUMNS": columns,
        "BLOCK_K": triton.next_power_of_2(columns),
        "GROUPS": groups,
        "CHOSEN_GROUPS": chosen_groups,
        "GROUP_BLOCKS": triton.next_power_of_2(groups),
        "GROUP_SIZE": size,
        "GROUP_BLOCK": triton.next_power_of_2(size),
    }


def _check(
    router_logits: Tensor, top_k: int, correction_bias: Tensor | None, groups: int, chosen_groups: int
) -> None:
    experts = router_logits.shape[1]
    if experts % groups or not 0 < chosen_groups <= groups:
        raise ContractError(
            f"a router: {experts} experts cannot be taken from {chosen_groups} of {groups} groups"
        )
    eligible = experts // groups * chosen_groups
    if not 0 < top_k <= eligible:
        raise ContractError(f"a router: top_k {top_k} is not between 1 and the {eligible} eligible experts")
    if correction_bias is not None and correction_bias.shape != (experts,):
        raise ContractError(
            f"a router: correction_bias {tuple(correction_bias.shape)} is not one for each of {experts}"
        )
    dtypes = {router_logits.dtype, *([] if correction_bias is None else [correction_bias.dtype])}
    padded = triton.next_power_of_2(groups) * triton.next_power_of_2(experts // groups)
    too_many = padded > MOST_EXPERTS or (chosen_groups < groups and groups > MOST_GROUPS)
    if too_many or not dtypes <= set(DTYPES):
        raise UnsupportedError(
            f"it chooses among at most {MOST_EXPERTS} experts in at most {MOST_GROUPS} groups, in float16, "
            f"bfloat16 or float32, not among {experts} in {groups}, "
            f"in {' and '.join(sorted(map(str, dtypes)))}"
        )

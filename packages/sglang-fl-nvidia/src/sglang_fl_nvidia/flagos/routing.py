"""The kernel of the routers: scores, the best groups, and the best experts of each token in one pass."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sglang_fl.errors import ContractError, UnsupportedError
from sglang_fl_nvidia.flagos.launch import DTYPES, Launch, Launches, address, compiled

__all__ = ["choose_experts"]

#: The scores of a token must fit into a warp's registers.
MOST_EXPERTS = 2048
#: Tokens from which on a program takes several, and how many. µs at 16384 tokens, 8 of 128 experts (H200):
#: 23.1 with one token in a program, 17.4 with four.
MANY, MANY_TOKENS = 512, 4
#: As the reference (``sglang_fl.ops.routing``): defined where all chosen scores have underflowed.
TINY = tl.constexpr(1e-20)
#: Smaller than any key.
NEVER = tl.constexpr(-(2**63))
LOW = tl.constexpr(0xFFFFFFFF)


@triton.jit
def _keys(value, number):
    """Return integers in the order of the float32 values, equal values in falling order of their number.

    So the largest element and its place come from one reduction, and no two keys are equal.
    """
    bits = value.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (number.to(tl.int64) ^ LOW)


@triton.jit
def _value_of(key):
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _is_in_best_groups(
    keys, number_of_group, COUNTS_TWO: tl.constexpr, GROUPS: tl.constexpr, CHOSEN_GROUPS: tl.constexpr
):
    """Say for each group of ``keys`` (tokens, groups, members) whether it is one of the best."""
    best = tl.max(keys, axis=2, keep_dims=True)
    worth = _value_of(best)
    if COUNTS_TWO:
        worth += _value_of(tl.max(tl.where(keys == best, NEVER, keys), axis=2, keep_dims=True))
    ranks = tl.where(number_of_group < GROUPS, _keys(worth, number_of_group), NEVER)
    left = ranks
    for _ in tl.static_range(CHOSEN_GROUPS - 1):
        left = tl.where(left == tl.max(left, axis=1, keep_dims=True), NEVER, left)
    return ranks >= tl.max(left, axis=1, keep_dims=True)


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


@triton.jit(do_not_specialize=["tokens", "factor"])
def routing_kernel(
    logits_ptr,
    bias_ptr,
    weights_ptr,
    ids_ptr,
    tokens,
    factor,
    STRIDE: tl.constexpr,
    TOP_K: tl.constexpr,
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
    """Route a few tokens. Groups and the members of one are padded to powers of two."""
    BLOCK: tl.constexpr = GROUP_BLOCKS * GROUP_BLOCK
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None]
    number = tl.arange(0, BLOCK)[None, :]
    group, member = number // GROUP_BLOCK, number % GROUP_BLOCK
    expert = group * GROUP_SIZE + member
    exists = (group < GROUPS) & (member < GROUP_SIZE)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + expert, mask=exists, other=0.0).to(tl.float32)
    if OVERLAP:
        gdc_wait()
    row = logits_ptr + token * STRIDE
    logits = tl.load(row + expert, mask=exists & (token < tokens), other=0.0).to(tl.float32)
    scores, highest, total = _scores(logits, exists, IS_SOFTMAX)
    if HAS_BIAS:
        scores += bias
    keys = tl.where(exists, _keys(scores, number), NEVER)
    if CHOSEN_GROUPS < GROUPS:
        grouped = tl.reshape(keys, (TOKENS, GROUP_BLOCKS, GROUP_BLOCK))
        number_of_group = tl.arange(0, GROUP_BLOCKS)[None, :, None]
        counts_two: tl.constexpr = HAS_BIAS and GROUP_SIZE > 1
        is_best = _is_in_best_groups(grouped, number_of_group, counts_two, GROUPS, CHOSEN_GROUPS)
        keys = tl.reshape(tl.where(is_best, grouped, NEVER), (TOKENS, BLOCK))
    place = tl.arange(0, BLOCK_K)[None, :]
    chosen = tl.zeros([TOKENS, BLOCK_K], dtype=tl.int64)
    for turn in tl.static_range(TOP_K):
        best = tl.max(keys, axis=1, keep_dims=True)
        chosen = tl.where(place == turn, best, chosen)
        keys = tl.where(keys == best, NEVER, keys)
    best_number = ((chosen & LOW) ^ LOW).to(tl.int32)
    ids = best_number // GROUP_BLOCK * GROUP_SIZE + best_number % GROUP_BLOCK
    kept = (place < TOP_K) & (token < tokens)
    weights = _value_of(chosen)
    if HAS_BIAS:  # the key holds the biased score
        chosen_logits = tl.load(row + ids, mask=kept, other=0.0).to(tl.float32)
        weights = tl.exp(chosen_logits - highest) / total if IS_SOFTMAX else tl.sigmoid(chosen_logits)
    if RENORMALIZES:
        weights /= tl.sum(tl.where(place < TOP_K, weights, 0.0), axis=1, keep_dims=True) + TINY
    tl.store(weights_ptr + token * TOP_K + place, weights * factor, mask=kept)
    tl.store(ids_ptr + token * TOP_K + place, ids, mask=kept)
    if OVERLAP:
        gdc_launch_dependents()


_launches: dict[tuple[object, ...], Launches] = {}


def choose_experts(
    router_logits: Tensor,
    top_k: int,
    renormalize: bool,
    correction_bias: Tensor | None,
    num_expert_group: int | None,
    topk_group: int | None,
    routed_scaling_factor: float,
    is_softmax: bool,
) -> tuple[Tensor, Tensor]:
    """Choose the experts of each token; see ``sglang_fl.ops.topk_softmax``.

    Of equal scores that of the lower number is chosen.

    Raises
    ------
    ContractError : groups, ``top_k`` or bias do not fit the experts
    UnsupportedError : another dtype, or more than 2048 experts, padding included
    """
    tokens, experts = router_logits.shape
    if router_logits.stride(1) != 1:
        router_logits = router_logits.contiguous()
    weights = router_logits.new_empty((tokens, top_k), dtype=torch.float32)
    ids = router_logits.new_empty((tokens, top_k), dtype=torch.int32)
    if tokens == 0:
        return weights, ids
    if correction_bias is not None and not correction_bias.is_contiguous():
        correction_bias = correction_bias.contiguous()
    bias = router_logits if correction_bias is None else correction_bias
    is_aligned = (router_logits.data_ptr() | bias.data_ptr()) % 16 == 0
    stride = router_logits.stride(0) if tokens > 1 else experts
    key = (
        *(
            router_logits.dtype,
            experts,
            stride,
            top_k,
            renormalize,
            correction_bias is None,
            bias.dtype,
            bias.shape[-1],
        ),
        *(num_expert_group, topk_group, is_softmax, is_aligned, router_logits.get_device()),
    )
    found = _launches.get(key)
    if found is None:
        # Without groups the number of those to choose says nothing; with them it must be given.
        groups = (1, 1) if num_expert_group is None else (num_expert_group, topk_group or 0)
        _check(router_logits, top_k, correction_bias, *groups)
        arguments = (router_logits, bias, weights, ids, tokens, 1.0)
        constants = _constants(experts, stride, top_k, *groups)
        flags = (is_softmax, correction_bias is not None, renormalize)
        found = _launches[key] = (
            _compiled(arguments, is_aligned, constants, 1, flags),
            _compiled(arguments, is_aligned, constants, MANY_TOKENS, flags),
        )
    launch, tokens_each = found[tokens > MANY]
    launch(
        -(-tokens // tokens_each),
        *(address(router_logits), address(bias), address(weights), address(ids)),
        *(tokens, float(routed_scaling_factor)),
    )
    return weights, ids


def _compiled(
    arguments: tuple[Any, ...],
    is_aligned: bool,
    constants: dict[str, int],
    tokens_each: int,
    flags: tuple[bool, bool, bool],
) -> tuple[Launch, int]:
    return compiled(
        routing_kernel,
        *arguments,
        is_aligned=is_aligned,
        num_warps=tokens_each,  # a warp for each token
        **constants,
        TOKENS=tokens_each,
        **dict(zip(("IS_SOFTMAX", "HAS_BIAS", "RENORMALIZES"), flags, strict=True)),
    ), tokens_each


def _constants(experts: int, stride: int, top_k: int, groups: int, chosen_groups: int) -> dict[str, int]:
    size = experts // groups
    return {
        "STRIDE": stride,
        "TOP_K": top_k,
        "BLOCK_K": triton.next_power_of_2(top_k),
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
    if not dtypes <= set(DTYPES) or padded > MOST_EXPERTS:
        raise UnsupportedError(
            f"it chooses among at most {MOST_EXPERTS} experts, by no {router_logits.dtype}"
        )

"""Calls that are wrong on purpose: the conformance kit on the simulated chip must tell each of them.

A mistake is planted between a kernel and the library it calls.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch

from sglang_fl.conformance import check_case
from sglang_fl.ops import OPS

Library = Callable[..., Any]


def swapped_sin_and_cos(library: Library) -> Library:
    return lambda x, sin, cos, *rest: library(x, cos, sin, *rest)


def the_other_style(library: Library) -> Library:
    return lambda *first, **named: library(*first[:5], not first[5], *first[6:], **named)


def tables_of_half_width(library: Library) -> Library:
    return lambda x, sin, cos, *rest: library(x, *(t[:, : t.shape[1] // 2] for t in (sin, cos)), *rest)


def long_positions(library: Library) -> Library:
    return lambda x, sin, cos, places, *rest: library(x, sin, cos, places.long(), *rest)


def rotated_out_of_place(library: Library) -> Library:
    return lambda x, *rest: library(x.clone(), *rest)


def a_wrong_keyword(library: Library) -> Library:
    return lambda x, residual, gamma, beta, bias, eps, store: library(
        x, residual, gamma, beta, bias, epsilon=eps, store_output_before_norm=store
    )


def a_missing_result(library: Library) -> Library:
    return lambda *first: library(*first[:6], False)


def in_place_where_it_is_not(library: Library) -> Library:
    def call(x: Any, residual: Any, *rest: Any):  # the kernel's results are dropped for what was passed
        library(x, residual, *rest)
        return x if residual is None else (x, residual)

    return call


def no_residual(library: Library) -> Library:
    return lambda x, residual, *rest: library(x, None, *rest)


def bias_for_beta(library: Library) -> Library:
    return lambda x, residual, gamma, beta, bias, *rest: library(x, residual, gamma, bias, beta, *rest)


def not_gated(library: Library) -> Library:
    return lambda x, mode, gated: library(x, mode, False)


def activated_second_half(library: Library) -> Library:
    return lambda x, mode, gated: library(torch.cat(x.chunk(2, -1)[::-1], -1), mode, gated)


def another_activation(library: Library) -> Library:
    return lambda x, mode, gated: library(x, "quick_gelu", gated)


def divided_by_the_sum(library: Library) -> Library:
    return lambda logits, k, normalize, *rest, **named: library(logits, k, True, *rest, **named)


def no_groups(library: Library) -> Library:
    return lambda logits, k, normalize, *groups, **named: library(logits, k, normalize, **named)


def no_bias(library: Library) -> Library:
    return lambda *rest, **named: library(*rest, **{**named, "score_bias": None})


def weights_and_ids_swapped(library: Library) -> Library:
    return lambda *rest, **named: library(*rest, **named)[::-1]


def expand_for_combine(library: Library) -> Library:
    def call(*arguments: Any):
        expand, combine, count, total = library(*arguments)
        return combine, expand, count, total

    return call


def sums_for_counts(library: Library) -> Library:
    def call(*arguments: Any):
        expand, combine, _, total = library(*arguments)
        return expand, combine, total[:-1].contiguous(), total

    return call


def weights_in_dtype(library: Library) -> Library:
    return lambda rows, weights, *rest: library(rows, weights.to(rows.dtype), *rest)


def one_key_too_few(library: Library) -> Library:
    return lambda q, k, v, out, tables, lengths, *rest, **named: library(
        q, k, v, out, tables, (lengths - 1).clamp(min=1), *rest, **named
    )


def tables_of_another(library: Library) -> Library:
    return lambda q, k, v, out, tables, *rest, **named: library(q, k, v, out, tables.flip(0), *rest, **named)


def long_tables(library: Library) -> Library:
    return lambda q, k, v, out, tables, *rest, **named: library(q, k, v, out, tables.long(), *rest, **named)


def keys_for_values(library: Library) -> Library:
    return lambda q, k, v, *rest, **named: library(q, k, k, *rest, **named)


def no_sinks(library: Library) -> Library:
    return lambda *rest, **named: library(*rest, **{**named, "sink": None})


def logarithm_lost(library: Library) -> Library:
    return lambda *rest, **named: library(*rest, **{**named, "return_lse": False})


def one_key_more_in_the_window(library: Library) -> Library:
    def call(*rest: Any, window_size_left: int, **named: Any):
        more = window_size_left + (window_size_left >= 0)
        return library(*rest, **{**named, "window_size_left": more})

    return call


def always_causal(library: Library) -> Library:
    return lambda *rest, **named: library(*rest[:-1], True, **named)


def sums_without_prefixes(library: Library) -> Library:
    return lambda q, k, v, out, of_new, of_all, *rest, **named: library(
        q, k, v, out, of_new, of_new, *rest, **named
    )


MISTAKES = [
    ("rotary_embedding", "apply_rotary", swapped_sin_and_cos),
    ("rotary_embedding", "apply_rotary", the_other_style),
    ("rotary_embedding", "apply_rotary", tables_of_half_width),
    ("rotary_embedding", "apply_rotary", long_positions),
    ("rotary_embedding", "apply_rotary", rotated_out_of_place),
    ("rms_norm", "fused_rms_norm", a_wrong_keyword),
    ("rms_norm", "fused_rms_norm", a_missing_result),
    ("rms_norm", "fused_rms_norm", in_place_where_it_is_not),
    ("rms_norm", "fused_rms_norm", no_residual),
    ("layer_norm", "fused_layer_norm", in_place_where_it_is_not),
    ("layer_norm", "fused_layer_norm", bias_for_beta),
    ("silu_and_mul", "active", not_gated),
    ("silu_and_mul", "active", activated_second_half),
    ("silu_and_mul", "active", another_activation),
    ("gelu_and_mul", "active", another_activation),
    ("topk_softmax", "moe_softmax_topk", divided_by_the_sum),
    ("topk_softmax", "moe_softmax_topk", no_groups),
    ("topk_softmax", "moe_softmax_topk", weights_and_ids_swapped),
    ("topk_sigmoid", "moe_sigmoid_topk", no_bias),
    ("topk_sigmoid", "moe_sigmoid_topk", no_groups),
    ("fused_moe", "moe_gen_idx", expand_for_combine),
    ("fused_moe", "moe_gen_idx", sums_for_counts),
    ("fused_moe", "moe_combine_result", weights_in_dtype),
    ("decode_attention", "single_query_cached_kv_attn", one_key_too_few),
    ("decode_attention", "single_query_cached_kv_attn", tables_of_another),
    ("decode_attention", "single_query_cached_kv_attn", long_tables),
    ("decode_attention", "single_query_cached_kv_attn", keys_for_values),
    ("decode_attention", "single_query_cached_kv_attn", no_sinks),
    ("decode_attention", "single_query_cached_kv_attn", logarithm_lost),
    ("extend_attention", "flash_attention", one_key_more_in_the_window),
    ("extend_attention", "flash_attention", always_causal),
    ("extend_attention", "flash_attention", sums_without_prefixes),
    ("extend_attention", "flash_attention", keys_for_values),
    ("extend_attention", "flash_attention", no_sinks),
]


@pytest.mark.on_chip("mlu")
@pytest.mark.parametrize(
    ("op", "function", "mistake"), MISTAKES, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_mistake_is_told(op, function, mistake):
    name = f"sglang_fl_mlu.vendor.{op}"
    module = importlib.import_module(name)
    check = functools.partial(faults_of, OPS[op], getattr(module, op))
    assert check() == []
    with mock.patch.object(module, function, mistake(getattr(module, function))):
        assert check() != []


def faults_of(op, kernel) -> list[str]:
    """Return what the kit says of all cases in bfloat16; that the kernel raises is one of its answers."""
    return [fault for case in op.cases for fault in check_case(op, kernel, case, torch.bfloat16, "mlu") or ()]

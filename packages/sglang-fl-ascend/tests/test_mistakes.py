"""Calls that every schema allows and that are wrong: the conformance kit on the simulated chip tells them.

A mistake is planted between a kernel and the operator it calls. What a schema refuses is in ``test_schemas``.
"""

import importlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch

from sglang_fl.conformance import check_case
from sglang_fl.ops import OPS

Operator = Callable[..., Any]


def the_right_half_is_activated(operator: Operator) -> Operator:
    return lambda x, dim, approximate, left: operator(x, dim, approximate)


def the_gelu_alone(operator: Operator) -> Operator:
    return lambda *rest: operator(*rest)[::-1]


def always_exact(operator: Operator) -> Operator:
    return lambda x, approximate: operator(x)


def eps_left_out(operator: Operator) -> Operator:
    return lambda *rest: operator(*rest[:-1])


def weight_and_bias_swapped(operator: Operator) -> Operator:
    return lambda x, shape, weight, bias, eps: operator(x, shape, bias, weight, eps)


def sum_and_norm_swapped(operator: Operator) -> Operator:
    return lambda *rest: operator(*rest)[::-1]


def in_place_where_it_is_not(operator: Operator) -> Operator:
    def call(x: Any, residual: Any, *rest: Any) -> Any:
        operator(x, residual, *rest)
        return x, None, residual

    return call


def one_is_not_added(operator: Operator) -> Operator:
    return lambda x, gamma, eps: operator(x, gamma - 1, eps)


def the_other_style(operator: Operator) -> Operator:
    other = {"half": "interleave", "interleave": "half"}
    return lambda *rest, rotary_mode, **named: operator(*rest, rotary_mode=other[rotary_mode], **named)


def sin_before_cos(operator: Operator) -> Operator:
    return lambda p, q, k, cache, *rest, **named: operator(
        p, q, k, torch.cat(cache.chunk(2, -1)[::-1], -1), *rest, **named
    )


def rotated_keys_lost(operator: Operator) -> Operator:
    return lambda p, q, k, *rest, **named: (operator(p, q, k, *rest, **named)[0], k)


def rows_for_ids(operator: Operator) -> Operator:
    def call(*rest: Any) -> Any:
        weights, _, rows = operator(*rest)
        return weights, rows, rows

    return call


def no_groups(operator: Operator) -> Operator:
    return lambda x, k, **named: operator(x, k, **{**named, "k_group": 1, "group_count": 1})


def softmax_for_sigmoid(operator: Operator) -> Operator:
    return lambda x, k, **named: operator(x, k, **{**named, "norm_type": 0})


def no_bias(operator: Operator) -> Operator:
    return lambda x, k, **named: operator(x, k, **{**named, "bias": None})


def places_by_token(operator: Operator) -> Operator:
    def call(rows: Any, skip1: Any, skip2: Any, bias: Any, scales: Any, places: Any, *rest: Any) -> Any:
        turned = places.view(scales.shape[1], -1).t().reshape(-1)
        return operator(rows, skip1, skip2, bias, scales, turned, *rest)

    return call


def matrices_not_turned(operator: Operator) -> Operator:
    return lambda rows, weight, **named: operator(rows, [w.transpose(1, 2) for w in weight], **named)


def in_one_piece(operator: Operator) -> Operator:
    return lambda *rest, cache_mode, **named: operator(*rest, **named)


def first_axis_alone(operator: Operator) -> Operator:
    return lambda p, *rest, mrope_section, **named: operator(
        p if p.dim() == 1 else p[0], *rest, mrope_section=[0, 0, 0], **named
    )


def one_key_too_few(operator: Operator) -> Operator:
    def call(*tensors: Any, atten_mask: Any, **named: Any) -> Any:
        fewer = atten_mask.clone()
        fewer[..., 1:] |= atten_mask.roll(-1, -1)[..., 1:]
        fewer[..., -1] = fewer.shape[-1] > 1
        return operator(*tensors, atten_mask=fewer, **named)

    return call


def keys_for_values(operator: Operator) -> Operator:
    return lambda q, k, v, *rest, **named: operator(q, k, k, *rest, **named)


def without_scale(operator: Operator) -> Operator:
    return lambda *rest, scale, **named: operator(*rest, **named)


def heads_of_keys_swapped(operator: Operator) -> Operator:
    return lambda q, k, v, **named: operator(q, k.flip(2), v.flip(2), **named)


def one_key_more_in_the_window(operator: Operator) -> Operator:
    def call(*rest: Any, **named: Any) -> Any:
        if "pre_tockens" in named:
            named["pre_tockens"] += 1
        return operator(*rest, **named)

    return call


def no_mask(operator: Operator) -> Operator:
    return lambda *rest, **named: operator(*rest, **{**named, "atten_mask": None})


def peaks_and_sums_swapped(operator: Operator) -> Operator:
    def call(*rest: Any, **named: Any) -> Any:
        attended, peaks, sums, *others = operator(*rest, **named)
        return attended, sums, peaks, *others

    return call


def prefixes_behind(operator: Operator) -> Operator:
    return lambda q, k, v, *rest, **named: operator(q, k.flip(0), v.flip(0), *rest, **named)


MISTAKES = [
    ("gelu_and_mul", "npu_geglu", the_right_half_is_activated),
    ("gelu_and_mul", "npu_geglu", the_gelu_alone),
    ("new_gelu", "npu_gelu", always_exact),
    ("rms_norm", "npu_rms_norm", eps_left_out),
    ("rms_norm", "npu_add_rms_norm", sum_and_norm_swapped),
    ("rms_norm", "npu_add_rms_norm", in_place_where_it_is_not),
    ("gemma_rms_norm", "npu_gemma_rms_norm", one_is_not_added),
    ("layer_norm", "npu_layer_norm_eval", weight_and_bias_swapped),
    ("rotary_embedding", "npu_mrope", the_other_style),
    ("rotary_embedding", "npu_mrope", sin_before_cos),
    ("rotary_embedding", "npu_mrope", rotated_keys_lost),
    ("mrope", "npu_mrope", sin_before_cos),
    ("mrope", "npu_mrope", in_one_piece),
    ("mrope", "npu_mrope", first_axis_alone),
    ("topk_softmax", "npu_moe_gating_top_k_softmax", rows_for_ids),
    ("topk_softmax", "npu_moe_gating_top_k", no_groups),
    ("topk_sigmoid", "npu_moe_gating_top_k", no_bias),
    ("topk_sigmoid", "npu_moe_gating_top_k", no_groups),
    ("topk_sigmoid", "npu_moe_gating_top_k", softmax_for_sigmoid),
    ("fused_moe", "npu_moe_finalize_routing", places_by_token),
    ("fused_moe", "npu_grouped_matmul", matrices_not_turned),
    ("decode_attention", "npu_fused_infer_attention_score", one_key_too_few),
    ("decode_attention", "npu_fused_infer_attention_score", keys_for_values),
    ("decode_attention", "npu_fused_infer_attention_score", without_scale),
    ("decode_attention", "npu_fused_infer_attention_score", heads_of_keys_swapped),
    ("extend_attention", "npu_fusion_attention", one_key_more_in_the_window),
    ("extend_attention", "npu_fusion_attention", no_mask),
    ("extend_attention", "npu_fusion_attention", peaks_and_sums_swapped),
    ("extend_attention", "npu_fusion_attention", prefixes_behind),
    ("extend_attention", "npu_fusion_attention", without_scale),
]


@pytest.mark.on_chip("ascend")
@pytest.mark.parametrize(
    ("op", "operator", "mistake"), MISTAKES, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_mistake_is_told(op, operator, mistake):
    import torch_npu

    module = importlib.import_module(f"sglang_fl_ascend.vendor.{op}")
    kernel = getattr(module, op)
    assert faults_of(OPS[op], kernel) == []
    with mock.patch.object(torch_npu, operator, mistake(getattr(torch_npu, operator))):
        assert faults_of(OPS[op], kernel) != []


def faults_of(op, kernel) -> list[str]:
    """Return what the kit says of all cases in float32, where a small mistake shows.

    Of a kernel without float32 it is float16. That the kernel raises is one of its answers.
    """
    dtype = torch.float16 if op.name == "decode_attention" else torch.float32
    return [fault for case in op.cases for fault in check_case(op, kernel, case, dtype, "npu") or ()]

"""Kernels that are wrong, each in one way: ``<op>__<what is wrong>``. The kit must catch every one."""

import inspect
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import OPS, Outputs

silu_and_mul = OPS["silu_and_mul"].reference
rms_norm = OPS["rms_norm"].reference
rotary_embedding = OPS["rotary_embedding"].reference
mrope = OPS["mrope"].reference
layer_norm = OPS["layer_norm"].reference
topk_softmax = OPS["topk_softmax"].reference
fused_moe = OPS["fused_moe"].reference

# Values


def silu_and_mul__halves_swapped(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return silu_and_mul(torch.cat((up, gate), dim=-1))


def silu_and_mul__rounds_twice(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def silu_and_mul__last_row_forgotten_in_large_batches(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    if x.dim() == 2 and len(x) > 128:
        result[128:] = 0
    return result


def silu_and_mul__tail_of_an_odd_width_forgotten(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    whole = result.shape[-1] // 8 * 8
    result[..., whole:] = 0
    return result


def silu_and_mul__overflows(x: Tensor) -> Tensor:
    gate, up = x.float().chunk(2, dim=-1)
    return (gate * up * gate.exp() / (1 + gate.exp()).clamp_max(1000)).to(x.dtype)


def silu_and_mul__nothing_computed(x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:-1], x.shape[-1] // 2)


def rms_norm__without_eps(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Outputs:
    return rms_norm(x, weight, 0.0, residual)


def rms_norm__squares_in_half(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Outputs:
    if residual is not None:
        return rms_norm(x, weight, eps, residual)
    mean = (x * x).mean(-1, keepdim=True).float()
    return (x.float() * torch.rsqrt(mean + eps) * weight.float()).to(x.dtype)


def rms_norm__norms_the_rounded_sum(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Outputs:
    if residual is None:
        return rms_norm(x, weight, eps)
    return rms_norm(x + residual, weight, eps), x + residual


def rms_norm__results_swapped(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Outputs:
    outputs = rms_norm(x, weight, eps, residual)
    return outputs if isinstance(outputs, Tensor) else outputs[::-1]


def layer_norm__without_bias(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    return layer_norm(x, weight, None, eps)


def layer_norm__variance_by_difference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    single = x.float() + 1000
    mean = single.mean(-1, keepdim=True)
    variance = single.square().mean(-1, keepdim=True) - mean.square()
    normed = (single - mean) * torch.rsqrt(variance.clamp_min(0) + eps)
    normed = normed if weight is None else normed * weight.float()
    return (normed if bias is None else normed + bias.float()).to(x.dtype)


def topk_softmax__next_experts(router_logits: Tensor, top_k: int, renormalize: bool) -> Outputs:
    weights, ids = topk_softmax(router_logits, top_k, renormalize)
    return weights, ids + 1


def topk_softmax__always_renormalizes(router_logits: Tensor, top_k: int, renormalize: bool) -> Outputs:
    return topk_softmax(router_logits, top_k, True)


def topk_softmax__ids_in_int64(router_logits: Tensor, top_k: int, renormalize: bool) -> Outputs:
    weights, ids = topk_softmax(router_logits, top_k, renormalize)
    return weights, ids.long()


def topk_softmax__option_ignored(
    router_logits: Tensor, top_k: int, renormalize: bool, *, routed_scaling_factor: float = 1.0
) -> Outputs:
    return topk_softmax(router_logits, top_k, renormalize)


def fused_moe__weights_ignored(
    hidden_states: Tensor, w13_weight: Tensor, w2_weight: Tensor, topk_weights: Tensor, topk_ids: Tensor
) -> Outputs:
    ones = torch.ones_like(topk_weights)
    return fused_moe(hidden_states, w13_weight, w2_weight, ones, topk_ids)


# Positions and other integers


def _rotary(kernel: Any) -> Any:
    """Give a function of keywords the signature of ``rotary_embedding``."""
    kernel.__signature__ = inspect.signature(rotary_embedding)
    return kernel


@_rotary
def rotary_embedding__backwards(**given: Any) -> Outputs:
    cos, sin = given["cos_sin_cache"].chunk(2, dim=-1)
    return rotary_embedding(**given | {"cos_sin_cache": torch.cat((cos, -sin), dim=-1)})


@_rotary
def rotary_embedding__one_style_only(**given: Any) -> Outputs:
    return rotary_embedding(**given | {"is_neox_style": True})


@_rotary
def rotary_embedding__offsets_ignored(**given: Any) -> Outputs:
    return rotary_embedding(**given | {"offsets": None})


@_rotary
def rotary_embedding__positions_in_float32(**given: Any) -> Outputs:
    return rotary_embedding(**given | {"positions": given["positions"].float().to(given["positions"].dtype)})


@_rotary
def rotary_embedding__row_offsets_in_32_bits(**given: Any) -> Outputs:
    width = given["cos_sin_cache"].shape[1]
    wrapped = (given["positions"] * width).to(torch.int32).long().clamp_min(0) // width
    return rotary_embedding(**given | {"positions": wrapped})


@_rotary
def rotary_embedding__takes_int64_positions_only(**given: Any) -> Outputs:
    assert given["positions"].dtype is torch.int64
    return rotary_embedding(**given)


@_rotary
def rotary_embedding__key_as_it_was(**given: Any) -> Outputs:
    return rotary_embedding(**given)[0], given["key"].clone()


def mrope__positions_in_float32(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    mrope_section: Any,
    mrope_interleaved: bool = False,
) -> Outputs:
    rounded = positions.float().to(positions.dtype)
    return mrope(
        rounded, query, key, cos_sin_cache, head_size, is_neox_style, mrope_section, mrope_interleaved
    )


# Strides and shapes


def silu_and_mul__rows_taken_as_dense(x: Tensor) -> Tensor:
    whole = x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
    return silu_and_mul(whole[: x.numel()].view(x.shape))


def silu_and_mul__offsets_in_32_bits(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    if x.dim() == 2 and len(x) and (len(x) - 1) * x.stride(0) >= 2**31:
        result[-1] = 0
    return result


def silu_and_mul__fails_for_nothing(x: Tensor) -> Tensor:
    assert x.numel() > 0
    return silu_and_mul(x)


def silu_and_mul__takes_two_axes_only(x: Tensor) -> Tensor:
    _, width = x.shape
    return silu_and_mul(x).view(-1, width // 2)


def silu_and_mul__elements_share_memory(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    return result[:1].expand(result.shape) if len(result) else result


# What is written, and whose memory is returned


def silu_and_mul__over_its_input(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    return x[..., : result.shape[-1]].copy_(result)


def silu_and_mul__beside_its_input(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    if x.dim() == 2 and x.stride(0) > x.shape[1]:
        x.as_strided((len(x), x.stride(0)), x.stride())[:-1, -1] = 0
    return result


def silu_and_mul__writes_then_refuses(x: Tensor) -> Tensor:
    x.zero_()
    raise UnsupportedError("not this one")


def silu_and_mul__one_buffer_for_all_calls(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    return _buffers.setdefault((result.shape, result.dtype), torch.empty_like(result)).copy_(result)


_buffers: dict[Any, Tensor] = {}


def rms_norm__always_in_place(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Outputs:
    outputs = rms_norm(x, weight, eps, residual)
    return x.copy_(outputs) if isinstance(outputs, Tensor) else outputs


def rms_norm__over_its_weight(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None
) -> Outputs:
    outputs = rms_norm(x, weight, eps, residual)
    weight.add_(1)
    return outputs


def new_gelu__hands_back_its_input(x: Tensor) -> Tensor:
    return x


@_rotary
def rotary_embedding__one_result_for_both(**given: Any) -> Outputs:
    query, key = rotary_embedding(**given)
    return (query, query) if query.shape == key.shape else (query, key)


@_rotary
def rotary_embedding__over_its_positions(**given: Any) -> Outputs:
    turned = rotary_embedding(**given)
    given["positions"].add_(1)
    return turned


@_rotary
def rotary_embedding__over_its_neighbour(**given: Any) -> Outputs:
    turned = rotary_embedding(**given)
    key = given["key"]
    if key.dim() == 2 and key.stride(0) > key.shape[1]:  # a slice of a packed projection: values follow it
        key.as_strided((len(key), key.shape[1] + 1), key.stride(), key.storage_offset())[:, -1] = 0
    return turned


DECODE = "fused_recurrent_gated_delta_rule_packed_decode"
_decode = OPS[DECODE].reference


def fused_recurrent_gated_delta_rule_packed_decode__without_update(**given: Any) -> Outputs:
    return _decode(**given | {"initial_state": given["initial_state"].clone()})


def fused_recurrent_gated_delta_rule_packed_decode__over_a_foreign_row(**given: Any) -> Outputs:
    outputs = _decode(**given)
    taken = given["initial_state_indices"].tolist()
    given["initial_state"][next(row for row in range(len(taken) + 1) if row not in taken)] += 1
    return outputs


for _kernel in (
    fused_recurrent_gated_delta_rule_packed_decode__without_update,
    fused_recurrent_gated_delta_rule_packed_decode__over_a_foreign_row,
):
    _kernel.__signature__ = OPS[DECODE].signature  # type: ignore[attr-defined]

# What is not finite


def silu_and_mul__hides_a_nan(x: Tensor) -> Tensor:
    return silu_and_mul(x).nan_to_num(0.0)


def silu_and_mul__spreads_a_nan(x: Tensor) -> Tensor:
    return silu_and_mul(x) + (0 * x.float().sum()).to(x.dtype)


def silu_and_mul__clamps_infinity(x: Tensor) -> Tensor:
    largest = torch.finfo(x.dtype).max
    return silu_and_mul(x.nan_to_num(torch.nan, posinf=largest).clamp(-largest, largest)).clamp(-1e4, 1e4)


# The same call again


def silu_and_mul__another_last_bit_each_time(x: Tensor) -> Tensor:
    gate, up = x.float().chunk(2, dim=-1)
    return (F.silu(gate) * up * (1 + 1e-3 * torch.finfo(x.dtype).eps * random.random())).to(x.dtype)


# In a graph


def _is_capturing(x: Tensor) -> bool:
    return x.device.type != "cpu" and bool(torch.get_device_module(x.device).is_current_stream_capturing())


def silu_and_mul__largest_element_read_by_the_host(x: Tensor) -> Tensor:
    largest = max(float(x.abs().max()) if x.numel() else 0.0, 1.0)
    return silu_and_mul(x) * (largest / largest)


def silu_and_mul__table_from_the_host(x: Tensor) -> Tensor:
    return silu_and_mul(x) * torch.ones(1).to(x.device, x.dtype)


def silu_and_mul__refuses_to_be_captured(x: Tensor) -> Tensor:
    if _is_capturing(x):
        raise UnsupportedError("not in a graph")
    return silu_and_mul(x)


def silu_and_mul__workspace_cleared_outside_of_the_graph(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    workspace = _buffers.setdefault((x.shape, x.dtype, x.device, "sum"), torch.zeros_like(result))
    if not _is_capturing(x):
        workspace.zero_()
    return workspace.add_(result).clone()


def silu_and_mul__launched_outside_of_the_graph(x: Tensor) -> Tensor:
    result = _buffers.setdefault((x.shape, x.dtype, x.device, "out"), x.new_empty(silu_and_mul(x).shape))
    return result if _is_capturing(x) else result.copy_(silu_and_mul(x)).clone()


def silu_and_mul__over_its_input_in_a_graph(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    if _is_capturing(x):
        x.neg_()
    return result


# The form of the call


def silu_and_mul__another_signature(x: Tensor, out: Tensor) -> Tensor:
    return out.copy_(silu_and_mul(x))


def silu_and_mul__another_dtype(x: Tensor) -> Tensor:
    return silu_and_mul(x.float())


def silu_and_mul__two_results(x: Tensor) -> Outputs:
    return silu_and_mul(x), silu_and_mul(x)


def silu_and_mul__a_tuple_of_one(x: Tensor) -> Outputs:
    return (silu_and_mul(x),)


def silu_and_mul__no_result(x: Tensor) -> None:
    silu_and_mul(x)


def silu_and_mul__raises(x: Tensor) -> Tensor:
    raise RuntimeError("no such kernel for this chip")


def silu_and_mul__refuses_float16(x: Tensor) -> Tensor:
    if x.dtype is torch.float16:
        raise UnsupportedError("no float16")
    return silu_and_mul(x)


def silu_and_mul__on_another_device(x: Tensor) -> Tensor:
    return silu_and_mul(x).to("meta")

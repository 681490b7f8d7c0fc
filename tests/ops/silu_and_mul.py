"""All that the tests know of the op ``silu_and_mul``."""

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import Outputs
from sglang_fl.ops.silu_and_mul import silu_and_mul
from tests.ops.shared.activations import draw_gated, native_of
from tests.ops.subject import Array, Subject


def formula(x: Array) -> tuple[Array, ...]:
    d = x.shape[-1] // 2
    gate, up = x[..., :d], x[..., d:]
    return (gate / (1 + np.exp(-gate)) * up,)


# Most of these mistakes could be any op's; this one is the plainest to show them on.

_buffers: dict[Any, Tensor] = {}


def _is_capturing(x: Tensor) -> bool:
    return x.device.type != "cpu" and bool(torch.get_device_module(x.device).is_current_stream_capturing())


def halves_swapped(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return silu_and_mul(torch.cat((up, gate), dim=-1))


def rounds_twice(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def last_row_forgotten_in_large_batches(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    if x.dim() == 2 and len(x) > 128:
        result[128:] = 0
    return result


def tail_of_an_odd_width_forgotten(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    whole = result.shape[-1] // 8 * 8
    result[..., whole:] = 0
    return result


def overflows(x: Tensor) -> Tensor:
    gate, up = x.float().chunk(2, dim=-1)
    return (gate * up * gate.exp() / (1 + gate.exp()).clamp_max(1000)).to(x.dtype)


def nothing_computed(x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:-1], x.shape[-1] // 2)


def rows_taken_as_dense(x: Tensor) -> Tensor:
    whole = x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
    return silu_and_mul(whole[: x.numel()].view(x.shape))


def offsets_in_32_bits(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    if x.dim() == 2 and len(x) and (len(x) - 1) * x.stride(0) >= 2**31:
        result[-1] = 0
    return result


def fails_for_nothing(x: Tensor) -> Tensor:
    assert x.numel() > 0
    return silu_and_mul(x)


def takes_two_axes_only(x: Tensor) -> Tensor:
    _, width = x.shape
    return silu_and_mul(x).view(-1, width // 2)


def elements_share_memory(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    return result[:1].expand(result.shape) if len(result) else result


def over_its_input(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    return x[..., : result.shape[-1]].copy_(result)


def beside_its_input(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    if x.dim() == 2 and x.stride(0) > x.shape[1]:
        x.as_strided((len(x), x.stride(0)), x.stride())[:-1, -1] = 0
    return result


def writes_then_refuses(x: Tensor) -> Tensor:
    x.zero_()
    raise UnsupportedError("not this one")


def one_buffer_for_all_calls(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    return _buffers.setdefault((result.shape, result.dtype), torch.empty_like(result)).copy_(result)


def hides_a_nan(x: Tensor) -> Tensor:
    return silu_and_mul(x).nan_to_num(0.0)


def spreads_a_nan(x: Tensor) -> Tensor:
    return silu_and_mul(x) + (0 * x.float().sum()).to(x.dtype)


def clamps_infinity(x: Tensor) -> Tensor:
    largest = torch.finfo(x.dtype).max
    return silu_and_mul(x.nan_to_num(torch.nan, posinf=largest).clamp(-largest, largest)).clamp(-1e4, 1e4)


def another_last_bit_each_time(x: Tensor) -> Tensor:
    gate, up = x.float().chunk(2, dim=-1)
    return (F.silu(gate) * up * (1 + 1e-3 * torch.finfo(x.dtype).eps * random.random())).to(x.dtype)


def largest_element_read_by_the_host(x: Tensor) -> Tensor:
    largest = max(float(x.abs().max()) if x.numel() else 0.0, 1.0)
    return silu_and_mul(x) * (largest / largest)


def table_from_the_host(x: Tensor) -> Tensor:
    return silu_and_mul(x) * torch.ones(1).to(x.device, x.dtype)


def refuses_to_be_captured(x: Tensor) -> Tensor:
    if _is_capturing(x):
        raise UnsupportedError("not in a graph")
    return silu_and_mul(x)


def workspace_cleared_outside_of_the_graph(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    workspace = _buffers.setdefault((x.shape, x.dtype, x.device, "sum"), torch.zeros_like(result))
    if not _is_capturing(x):
        workspace.zero_()
    return workspace.add_(result).clone()


def launched_outside_of_the_graph(x: Tensor) -> Tensor:
    result = _buffers.setdefault((x.shape, x.dtype, x.device, "out"), x.new_empty(silu_and_mul(x).shape))
    return result if _is_capturing(x) else result.copy_(silu_and_mul(x)).clone()


def over_its_input_in_a_graph(x: Tensor) -> Tensor:
    result = silu_and_mul(x)
    if _is_capturing(x):
        x.neg_()
    return result


def another_signature(x: Tensor, out: Tensor) -> Tensor:
    return out.copy_(silu_and_mul(x))


def another_dtype(x: Tensor) -> Tensor:
    return silu_and_mul(x.float())


def two_results(x: Tensor) -> Outputs:
    return silu_and_mul(x), silu_and_mul(x)


def a_tuple_of_one(x: Tensor) -> Outputs:
    return (silu_and_mul(x),)


def no_result(x: Tensor) -> None:
    silu_and_mul(x)


def raises(x: Tensor) -> Tensor:
    raise RuntimeError("no such kernel for this chip")


def refuses_float16(x: Tensor) -> Tensor:
    if x.dtype is torch.float16:
        raise UnsupportedError("no float16")
    return silu_and_mul(x)


def on_another_device(x: Tensor) -> Tensor:
    return silu_and_mul(x).to("meta")


SUBJECT = Subject(
    formula=formula,
    draw=draw_gated,
    native=native_of("SiluAndMul"),
    wrong={
        "cases": (
            halves_swapped,
            rounds_twice,
            last_row_forgotten_in_large_batches,
            tail_of_an_odd_width_forgotten,
            overflows,
            nothing_computed,
            rows_taken_as_dense,
            fails_for_nothing,
            takes_two_axes_only,
            elements_share_memory,
            over_its_input,
            beside_its_input,
            writes_then_refuses,
            another_signature,
            another_dtype,
            two_results,
            a_tuple_of_one,
            no_result,
            raises,
            refuses_float16,
            on_another_device,
        ),
        "edges": (
            offsets_in_32_bits,
            hides_a_nan,
            spreads_a_nan,
            clamps_infinity,
        ),
        "repeat": (
            one_buffer_for_all_calls,
            another_last_bit_each_time,
        ),
        "graph": (
            largest_element_read_by_the_host,
            table_from_the_host,
            refuses_to_be_captured,
            workspace_cleared_outside_of_the_graph,
            launched_outside_of_the_graph,
            over_its_input_in_a_graph,
        ),
    },
)

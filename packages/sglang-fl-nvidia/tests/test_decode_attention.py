"""The kernels of ``decode_attention``: ranges of every kind, each tile, what they read and refuse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_fl.conformance.check import check_call
from sglang_fl.errors import ContractError, UnsupportedError
from sglang_fl.ops import OPS
from sglang_fl.vendor import load_target
from sglang_fl_nvidia.flagos import attention, attention_tiles
from sglang_fl_nvidia.flagos import decode_attention as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OP = OPS["decode_attention"]
kernel: Callable[..., Any] = load_target("sglang_fl_nvidia.flagos.decode_attention:decode_attention")


@pytest.fixture(autouse=True)
def fresh_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_launches", {})


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE)


def call(*lengths: int, heads: tuple[int, int] = (4, 2), size: int = 16, **options: Any) -> dict[str, Any]:
    """Sequences of such lengths; what lies in the slots of none is no number."""
    query_heads, kv_heads = heads
    slots = sum(lengths) + 7
    drawn = torch.randperm(slots, device=DEVICE)
    pools = [normal(slots, kv_heads, size) for _ in range(2)]
    for pool in pools:
        pool[drawn[sum(lengths) :]] = torch.nan
    return {
        "q": normal(len(lengths), query_heads, size),
        "k_buffer": pools[0],
        "v_buffer": pools[1],
        "kv_indptr": torch.tensor([0, *lengths]).cumsum(0).to(DEVICE, torch.int32),
        "kv_indices": drawn,
        "scale": size**-0.5,
        **options,
    }


def assert_right(arguments: dict[str, Any]) -> None:
    plain = {name: v.cpu() if isinstance(v, Tensor) else v for name, v in arguments.items()}
    assert check_call(OP, kernel, arguments, plain, "decode_attention", OP.bound) == []


def with_tile(monkeypatch: pytest.MonkeyPatch, multiprocessors: int = 1, **sizes: int) -> None:
    """Have all tiles of decode changed like this, on a GPU of so many multiprocessors."""
    for table in ("DECODE", "DECODE_EIGHT_BIT", "DECODE_LATENT"):
        changed = {key: tile._replace(**sizes) for key, tile in getattr(attention_tiles, table).items()}
        monkeypatch.setattr(attention_tiles, table, changed)
    monkeypatch.setattr(kernels, "multiprocessors", lambda device: multiprocessors)


LENGTHS = {
    "one-long": (200,),
    "whole-tiles": (32, 64, 16),
    "just-past-a-tile": (17, 33, 1),
    "long-among-short": (3, 1, 150, 0, 0, 2, 20, 0),
    "none": (0, 0),
}


@pytest.mark.parametrize("multiprocessors", [1, 3, 40])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_ranges_of_every_kind(
    lengths: tuple[int, ...], multiprocessors: int, monkeypatch: pytest.MonkeyPatch
):
    """A range is a part of a sequence, or has several; there may be more ranges than tiles."""
    with_tile(monkeypatch, multiprocessors, slots=8, per_multiprocessor=2)
    assert_right(call(*lengths, return_lse=True, sinks=normal(4)))


def test_more_sequences_than_are_looked_at_at_a_time(monkeypatch: pytest.MonkeyPatch):
    with_tile(monkeypatch, 2)
    assert_right(call(*(number % 4 for number in range(140)), heads=(1, 1)))


@pytest.mark.parametrize("few_heads", [0, 1 << 30], ids=["many", "few"])
@pytest.mark.parametrize("size", [40, 100])
def test_both_merges(few_heads: int, size: int, monkeypatch: pytest.MonkeyPatch):
    """More partial results than are merged at a time, and heads that no tile divides."""
    monkeypatch.setattr(attention_tiles, "MERGE_FEW_HEADS", few_heads)
    with_tile(monkeypatch, 45, slots=8, per_multiprocessor=1)
    assert_right(call(700, 5, heads=(2, 1), size=size))


@pytest.mark.parametrize(("heads", "group"), [(16, 21), (32, 40), (64, 80)])
@pytest.mark.parametrize("is_latent", [True, False], ids=["latent", "not-latent"])
def test_groups_of_more_heads_than_a_program_has(
    heads: int, group: int, is_latent: bool, monkeypatch: pytest.MonkeyPatch
):
    with_tile(monkeypatch, heads=heads, slots=8)
    arguments = call(21, 9, heads=(group, 1), size=48, logit_cap=2.0)
    if is_latent:
        arguments["v_buffer"] = arguments["k_buffer"][..., :32]
    assert_right(arguments)


def test_values_in_the_memory_of_other_keys_are_read_apart():
    """Not every view of the keys is their first part."""
    arguments = call(21, 9, heads=(4, 1), size=48)
    arguments["v_buffer"] = arguments["k_buffer"][..., 16:]
    assert_right(arguments)
    arguments["v_buffer"] = arguments["k_buffer"][..., :24]
    assert_right(arguments)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_bounds_and_slots_of_either_width_and_any_stride(dtype: torch.dtype):
    arguments = call(21, 0, 9)
    for name in ("kv_indptr", "kv_indices"):
        arguments[name] = torch.stack([arguments[name].to(dtype)] * 3, dim=-1)[..., 1]
    assert_right(arguments)


def test_what_fresh_memory_holds_never_reaches_a_result(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "multiprocessors", lambda device: 20)
    new_empty = Tensor.new_empty

    def spoiled(tensor: Tensor, *sizes: Any, **given: Any) -> Tensor:
        fresh = new_empty(tensor, *sizes, **given)
        return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

    monkeypatch.setattr(Tensor, "new_empty", spoiled)
    assert_right(call(200, 0, 130, 5, return_lse=True))


@pytest.mark.parametrize("few_heads", [0, 1 << 30], ids=["many", "few"])
def test_ranges_whose_scores_are_all_minus_infinity(few_heads: int, monkeypatch: pytest.MonkeyPatch):
    """They have no weight beside the others; where there are no others the result is 0."""
    monkeypatch.setattr(attention_tiles, "MERGE_FEW_HEADS", few_heads)
    with_tile(monkeypatch, 80, slots=8, per_multiprocessor=1)
    arguments = call(1300, 200, 9)
    arguments["q"].abs_()
    slots = arguments["kv_indices"]
    arguments["k_buffer"][slots[:1250]] = -torch.inf
    arguments["k_buffer"][slots[1500:1509]] = -torch.inf
    for more in ({}, {"return_lse": True}, {"sinks": normal(4)}):
        assert_right(arguments | more)
    assert not kernel(**arguments)[2].any()


def test_the_result_is_written_where_the_caller_wants_it():
    out = torch.full((3, 4, 24), torch.nan, device=DEVICE)
    arguments = call(21, 0, 9)
    result = kernel(**arguments, out=out[..., :16])
    assert result.data_ptr() == out.data_ptr()
    torch.testing.assert_close(out[..., :16], kernel(**arguments))
    assert out[..., 16:].isnan().all()
    # Elements apart are no place for a result, and it is new then.
    assert kernel(**arguments, out=normal(3, 4, 32)[..., ::2]).is_contiguous()


@pytest.mark.parametrize("name", ["q", "k_buffer", "v_buffer", "sinks"])
def test_a_result_is_not_written_over_what_is_read(name: str):
    arguments = call(21, 0, 9, sinks=normal(4 * 3 * 16 * 4)[:4])
    memory = arguments[name]
    arguments["out"] = memory.as_strided((3, 4, 16), (64, 16, 1), memory.storage_offset())
    assert_right(arguments)


def test_a_result_is_not_written_where_its_rows_are_one():
    assert_right(call(21, 5, 9, out=normal(1, 4, 16).expand(3, 4, 16)))


def test_a_result_beside_what_is_read_is_written_in_one_storage():
    both = normal(3, 8, 16)
    arguments = call(21, 5, 9) | {"q": both[:, :4], "out": both[:, 4:]}
    assert_right(arguments)
    assert kernel(**arguments).data_ptr() == arguments["out"].data_ptr()


def test_sinks_are_read_at_any_stride():
    assert_right(
        call(21, 0, 9, sinks=torch.stack([normal(4), torch.full((4,), 9.0, device=DEVICE)], 1)[:, 0])
    )


def test_heads_with_gaps_are_refused():
    arguments = call(21, 9, size=32)
    arguments["k_buffer"] = torch.cat([arguments["k_buffer"]] * 2, dim=-1)[..., ::2]
    with pytest.raises(UnsupportedError, match="heads are dense"):
        kernel(**arguments)


def test_pools_of_another_dtype_are_refused():
    arguments = call(21, 9)
    arguments["v_buffer"] = arguments["v_buffer"].half()
    with pytest.raises(UnsupportedError, match="in one dtype"):
        kernel(**arguments)


def test_temperatures_over_ranges_of_every_kind(monkeypatch: pytest.MonkeyPatch):
    """They go by the whole length of a sequence, not by the range that a program has."""
    with_tile(monkeypatch, 3, slots=8, per_multiprocessor=2)
    for temperature_len in (2, 100, 0):
        assert_right(call(3, 1, 250, 0, 101, logit_cap=2.0, temperature_len=temperature_len, return_lse=True))
    assert len(kernels._launches) == 3


@pytest.mark.parametrize("temperature_len", [1, -1])
def test_a_length_without_a_logarithm_to_divide_by_is_refused_after_a_right_call_too(temperature_len: int):
    kernel(**call(21, 9))
    for computes in (kernel, OP.reference):
        with pytest.raises(ContractError, match=f"temperature_len {temperature_len} is neither 0"):
            computes(**call(21, 9, temperature_len=temperature_len))


def in_8_bit(dtype: torch.dtype = torch.float8_e4m3fn, **scales: float) -> dict[str, Any]:
    arguments = call(21, 0, 40)
    pools = {name: arguments[name].to(dtype) for name in ("k_buffer", "v_buffer")}
    return arguments | pools | scales


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("is_latent", [True, False], ids=["latent", "not-latent"])
def test_pools_in_8_bit_over_ranges_of_every_kind(
    is_latent: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    """Also where values are a part of the keys: their scale is their own."""
    with_tile(monkeypatch, 3, slots=8, per_multiprocessor=2)
    arguments = call(3, 1, 150, 0, 20, heads=(4, 1), size=48, return_lse=True, sinks=normal(4))
    pools = {name: arguments[name].to(dtype) for name in ("k_buffer", "v_buffer")}
    if is_latent:
        pools["v_buffer"] = pools["k_buffer"][..., :32]
    assert_right(arguments | pools | {"k_scale": 0.4, "v_scale": 2.5})


@pytest.mark.parametrize("exponent", [-100, 0, 100])
def test_queries_in_bfloat16_of_any_size_meet_pools_in_8_bit(exponent: int):
    """They are brought to float16, which has less range: no bit of their rows may be lost for that."""
    arguments = in_8_bit(k_scale=0.5, v_scale=2.0)
    sizes = torch.tensor([1.0, 2.0**12, 2.0**-12], device=DEVICE)
    q = (arguments["q"] * sizes.view(3, 1, 1)).bfloat16()
    assert_right(arguments | {"q": q})
    sized = {"q": q * 2.0**exponent, "scale": arguments["scale"] * 2.0**-exponent}
    assert torch.equal(kernel(**arguments | sized), kernel(**arguments | {"q": q}))


def test_scales_may_differ_from_call_to_call():
    for k_scale, v_scale in ((0.3, 2.0), (1.0, 1.0), (5.0, 0.7)):
        assert_right(in_8_bit(k_scale=k_scale, v_scale=v_scale, logit_cap=3.0))
    assert len(kernels._launches) == 1


def test_pools_in_8_bit_without_scales_are_refused_after_a_right_call_too():
    kernel(**in_8_bit(k_scale=1.0, v_scale=1.0))
    with pytest.raises(ContractError, match="k_buffer in float8_e4m3fn needs k_scale and v_scale"):
        kernel(**in_8_bit())
    with pytest.raises(ContractError, match="of k_scale and v_scale one alone is given"):
        kernel(**in_8_bit(k_scale=1.0))


def test_what_a_gpu_cannot_convert_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "capability", lambda device: (8, 0))
    monkeypatch.setattr(Tensor, "get_device", lambda tensor: 0)
    assert_right(in_8_bit(torch.float8_e5m2, k_scale=0.5, v_scale=2.0))
    with pytest.raises(UnsupportedError, match=r"this GPU does not convert torch\.float8_e4m3fn"):
        kernel(**in_8_bit(k_scale=0.5, v_scale=2.0))
    mixed = in_8_bit(k_scale=0.5, v_scale=2.0) | {"v_buffer": in_8_bit(torch.float8_e5m2)["v_buffer"]}
    with pytest.raises(UnsupportedError, match=r"e4m3fn, torch\.float8_e5m2"):
        kernel(**mixed)


def test_heads_of_too_many_elements_are_refused():
    with pytest.raises(UnsupportedError, match="not 1024 and 1024"):
        kernel(**call(3, size=1024))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("kv_indptr", (slice(2),)),
        ("q", (slice(None), slice(3))),
        ("v_buffer", (slice(None), slice(1))),
        ("v_buffer", (slice(9),)),
        ("sinks", (slice(3),)),
        ("out", (slice(1),)),
        ("out", (slice(1), slice(None), slice(None, None, 2))),
    ],
)
def test_what_does_not_fit_is_refused_after_a_right_call_too(name: str, part: tuple[slice, ...]):
    arguments = call(21, 9, sinks=normal(4), out=normal(2, 4, 16))
    kernel(**arguments)
    arguments[name] = arguments[name][part]
    for computes in (kernel, OP.reference):
        with pytest.raises(ContractError, match="decode_attention"):
            computes(**arguments)


@pytest.mark.parametrize(
    ("blocks", "ranges"), [(8, 33), (32, 8), (264, 1), (300, 3), (96, 8), (5000, 1), (1, 264)]
)
def test_ranges_fill_the_places_of_a_gpu(blocks: int, ranges: int):
    assert attention_tiles.ranges_for(blocks, places=264) == ranges

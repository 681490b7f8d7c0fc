"""The kernel of ``extend_attention``: tiles of every kind, masks at their edges, what it refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_fl.conformance.check import check_call
from sglang_fl.errors import ContractError, UnsupportedError
from sglang_fl.ops import OPS
from sglang_fl.vendor import load_target
from sglang_fl_nvidia.flagos import attention_tiles
from sglang_fl_nvidia.flagos import extend_attention as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OP = OPS["extend_attention"]
kernel: Callable[..., Any] = load_target("sglang_fl_nvidia.flagos.extend_attention:extend_attention")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have tiles of 16 rows and keys, in float32, and kernels of this test alone."""
    tile = attention_tiles.ExtendTile(32, 32, 4, 2)
    monkeypatch.setattr(attention_tiles, "EXTEND", {64: (tile,)})
    monkeypatch.setattr(kernels, "_launches", {})


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE)


def call(
    *lengths: tuple[int, int],
    heads: tuple[int, int] = (6, 2),
    size: int = 16,
    before: int = 0,
    after: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Sequences of such prefixes and new tokens; what lies elsewhere in the pools is no number.

    Padding lies before the first token and after the last.
    """
    query_heads, kv_heads = heads
    prefixes, new = [length for length, _ in lengths], [length for _, length in lengths]
    tokens, slots = before + sum(new) + after, sum(prefixes) + 7
    drawn = torch.randperm(slots, device=DEVICE)
    pools = [normal(slots, kv_heads, size) for _ in range(2)]
    for pool in pools:
        pool[drawn[sum(prefixes) :]] = torch.nan
    q, k, v = (normal(tokens, count, size) for count in (query_heads, kv_heads, kv_heads))
    for x in (q, k, v):
        x[:before] = torch.nan
        x[tokens - after :] = torch.nan
    return {
        "q": q,
        "k": k,
        "v": v,
        "k_buffer": pools[0],
        "v_buffer": pools[1],
        "qo_indptr": torch.tensor([before, *new]).cumsum(0).to(DEVICE),
        "kv_indptr": torch.tensor([0, *prefixes]).cumsum(0).to(DEVICE, torch.int32),
        "kv_indices": drawn,
        "scale": size**-0.5,
        **options,
    }


def assert_right(arguments: dict[str, Any]) -> None:
    plain = {name: v.cpu() if isinstance(v, Tensor) else v for name, v in arguments.items()}
    assert check_call(OP, kernel, arguments, plain, "extend_attention", OP.bound) == []


LENGTHS: dict[str, tuple[tuple[int, int], ...]] = {
    "prefixes-at-the-edges-of-tiles": ((15, 3), (16, 3), (17, 3), (33, 2)),
    "tokens-at-the-edges-of-tiles": ((0, 5), (0, 16), (3, 17), (0, 33)),
    "empty-ones-between": ((0, 0), (4, 7), (9, 0), (0, 0), (0, 1), (2, 0)),
}


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "not-causal"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_tiles_of_every_kind(lengths: tuple[tuple[int, int], ...], is_causal: bool):
    """Three heads share keys, which no tile divides: a token's heads are in two of them."""
    assert_right(call(*lengths, is_causal=is_causal, return_lse=True, sinks=normal(6)))


@pytest.mark.parametrize("window", [0, 1, 14, 15, 16, 17, 40])
@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "not-causal"])
def test_windows_at_the_edges_of_tiles(window: int, is_causal: bool):
    lengths = (35, 20), (16, 1), (0, 19)
    assert_right(call(*lengths, is_causal=is_causal, sliding_window=window, return_lse=True))


def test_of_a_prefix_what_lies_before_the_window_may_be_left_out():
    arguments = call((60, 20), (30, 3), sliding_window=17)
    whole = kernel(**arguments)
    kept = [arguments["kv_indices"][60 - 17 : 60], arguments["kv_indices"][90 - 17 : 90]]
    bounds = torch.tensor([0, 17, 34], device=DEVICE)
    torch.testing.assert_close(
        kernel(**arguments | {"kv_indices": torch.cat(kept), "kv_indptr": bounds}), whole
    )


@pytest.mark.parametrize(("before", "after"), [(0, 40), (3, 0), (20, 5)])
def test_padding_gets_zeros_wherever_it_lies(before: int, after: int):
    out = torch.full((before + 19 + after, 6, 16), torch.nan, device=DEVICE)
    assert_right(call((5, 9), (0, 10), before=before, after=after, return_lse=True, out=out))


def test_tokens_of_no_sequence_are_all_padding():
    assert_right(call(after=5, return_lse=True))


def test_more_sequences_than_are_looked_at_at_a_time():
    assert_right(call(*((number % 3, number % 2) for number in range(140)), heads=(1, 1)))


def test_the_tile_goes_by_the_rows_of_a_sequence(monkeypatch: pytest.MonkeyPatch):
    sizes = {64: tuple(attention_tiles.ExtendTile(rows, 32, 4, 2) for rows in (32, 64))}
    monkeypatch.setattr(attention_tiles, "EXTEND", sizes)
    assert_right(call((9, 5), (3, 4)))
    assert_right(call((9, 40), (3, 30)))


@pytest.mark.parametrize("shared", ["pool", "new", "both"])
def test_a_program_holds_no_more_than_fits(shared: str, monkeypatch: pytest.MonkeyPatch):
    """A model with latent attention passes new values apart from its keys: they are held beside them."""
    memory, asked = 227 * 2**10, {}
    monkeypatch.setattr(attention_tiles, "EXTEND", {512: (attention_tiles.ExtendTile(64, 64, 8, 2),)})
    monkeypatch.setattr(kernels, "shared_memory", lambda device: memory)
    monkeypatch.setattr(kernels, "compiled", lambda *given, **options: asked.update(options) or print)
    arguments = call((3, 5), heads=(16, 1), size=576)
    arguments |= {name: arguments[name].bfloat16() for name in ("q", "k", "v", "k_buffer", "v_buffer")}
    for names, word in ((("k", "v"), "new"), (("k_buffer", "v_buffer"), "pool")):
        keys, values = (arguments[name] for name in names)
        arguments[names[1]] = (keys if shared in (word, "both") else values)[..., :512]
    kernel(**arguments)
    beside = 0 if shared == "both" else 512
    held = asked["num_stages"] * 64 * (576 + beside) + 64 * (576 + 64)
    assert held * 2 <= memory
    assert asked["num_stages"] == (2 if shared == "both" else 1)


@pytest.mark.parametrize("shared", ["neither", "pool", "new", "both"])
def test_values_in_the_memory_of_keys(shared: str):
    arguments = call((21, 9), (0, 5), heads=(5, 1), size=48, logit_cap=2.0)
    for names, word in ((("k", "v"), "new"), (("k_buffer", "v_buffer"), "pool")):
        keys, values = (arguments[name] for name in names)
        arguments[names[1]] = (keys if shared in (word, "both") else values)[..., :32]
    assert_right(arguments)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_bounds_and_slots_of_either_width_and_any_stride(dtype: torch.dtype):
    arguments = call((21, 5), (0, 3), (9, 4))
    for name in ("qo_indptr", "kv_indptr", "kv_indices"):
        arguments[name] = torch.stack([arguments[name].to(dtype)] * 3, dim=-1)[..., 1]
    assert_right(arguments)


def test_what_fresh_memory_holds_never_reaches_a_result(monkeypatch: pytest.MonkeyPatch):
    new_empty = Tensor.new_empty

    def spoiled(tensor: Tensor, *sizes: Any, **given: Any) -> Tensor:
        fresh = new_empty(tensor, *sizes, **given)
        return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

    monkeypatch.setattr(Tensor, "new_empty", spoiled)
    assert_right(call((20, 9), (0, 30), after=3, return_lse=True))


def test_the_result_is_written_where_the_caller_wants_it():
    out = torch.full((14, 6, 24), torch.nan, device=DEVICE)
    arguments = call((21, 9), (0, 5))
    result = kernel(**arguments, out=out[..., :16])
    assert result.data_ptr() == out.data_ptr()
    torch.testing.assert_close(out[..., :16], kernel(**arguments))
    assert out[..., 16:].isnan().all()


@pytest.mark.parametrize("window", [-1, 17], ids=["all", "window"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_only_the_prefix_has_scales(dtype: torch.dtype, window: int):
    for k_scale, v_scale in ((0.3, 2.0), (4.0, 0.7)):
        arguments = call((35, 20), (0, 30), (17, 1), sliding_window=window, sinks=normal(6), return_lse=True)
        pools = {name: arguments[name].to(dtype) for name in ("k_buffer", "v_buffer")}
        assert_right(arguments | pools | {"k_scale": k_scale, "v_scale": v_scale})
    assert len(kernels._launches) == 1


@pytest.mark.parametrize("window", [-1, 17], ids=["all", "window"])
def test_temperatures_go_by_the_place_behind_the_prefix(window: int):
    """In tiles with new keys that all rows see, and with rows of several tokens."""
    for temperature_len in (2, 40):
        options = {"logit_cap": 2.0, "temperature_len": temperature_len, "return_lse": True}
        assert_right(call((135, 20), (0, 30), (17, 1), (0, 0), sliding_window=window, **options))
    assert len(kernels._launches) == 2


@pytest.mark.parametrize("temperature_len", [1, -1])
def test_a_length_without_a_logarithm_to_divide_by_is_refused_after_a_right_call_too(temperature_len: int):
    kernel(**call((21, 9)))
    for computes in (kernel, OP.reference):
        with pytest.raises(ContractError, match=f"temperature_len {temperature_len} is neither 0"):
            computes(**call((21, 9), temperature_len=temperature_len))


@pytest.mark.parametrize("name", ["q", "k", "v", "k_buffer", "v_buffer", "sinks"])
def test_a_result_is_not_written_over_what_is_read(name: str):
    """Query heads are as many as those of keys, so that a result has the size of each."""
    arguments = call((5, 4), (0, 9), heads=(3, 3), sinks=normal(13 * 3 * 16)[:3])
    pools = {name: torch.cat([arguments[name], normal(20, 3, 16)]) for name in ("k_buffer", "v_buffer")}
    arguments |= pools
    memory = arguments[name]
    assert_right(arguments | {"out": memory.as_strided((13, 3, 16), (48, 16, 1), memory.storage_offset())})


def test_a_result_is_not_written_where_its_rows_are_one():
    assert_right(call((5, 4), (0, 9), out=normal(1, 6, 16).expand(13, 6, 16)))


def test_sinks_are_read_at_any_stride():
    sinks = torch.stack([normal(6), torch.full((6,), 9.0, device=DEVICE)], 1)[:, 0]
    assert_right(call((5, 4), (0, 9), sinks=sinks))


def test_pools_of_another_dtype_and_heads_with_gaps_are_refused():
    arguments = call((21, 9), size=32)
    with pytest.raises(UnsupportedError, match="in one dtype"):
        kernel(**arguments | {"v_buffer": arguments["v_buffer"].half()})
    gaps = torch.cat([arguments["k_buffer"]] * 2, dim=-1)[..., ::2]
    with pytest.raises(UnsupportedError, match="heads are dense"):
        kernel(**arguments | {"k_buffer": gaps})
    with pytest.raises(UnsupportedError, match="not 1024 and 1024"):
        kernel(**call((1, 1), size=1024))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("qo_indptr", (slice(2),)),
        ("k", (slice(3),)),
        ("q", (slice(None), slice(5))),
        ("v_buffer", (slice(None), slice(1))),
        ("v_buffer", (slice(4),)),
        ("sinks", (slice(3),)),
        ("out", (slice(1),)),
        ("out", (slice(1), slice(None), slice(None, None, 2))),
    ],
)
def test_what_does_not_fit_is_refused_after_a_right_call_too(name: str, part: tuple[slice, ...]):
    arguments = call((2, 4), (3, 9), sinks=normal(6), out=normal(13, 6, 16))
    kernel(**arguments)
    arguments[name] = arguments[name][part]
    for computes in (kernel, OP.reference):
        with pytest.raises(ContractError, match="extend_attention"):
            computes(**arguments)

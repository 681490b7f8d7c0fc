"""The kernels of linear attention: each of their tiles, what they read where it lies, what they refuse."""

import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_fl.errors import ContractError, UnsupportedError
from sglang_fl.ops import OPS
from sglang_fl.vendor import load_target
from sglang_fl_nvidia.flagos import (
    causal_conv1d_fn,
    causal_conv1d_update,
    chunk_gated_delta_rule,
    delta_rule,
    fused_recurrent_gated_delta_rule_packed_decode,
    fused_sigmoid_gating_delta_rule_update,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEP, RUNS = "fused_recurrent_gated_delta_rule_packed_decode", "fused_sigmoid_gating_delta_rule_update"
UPDATE, PROMPTS = "causal_conv1d_update", "causal_conv1d_fn"
CHUNKS = "chunk_gated_delta_rule"
OURS = (STEP, RUNS, UPDATE, PROMPTS, CHUNKS)
#: The limits of the small tile lie in the first, compiled kernels in the second.
MODULES = {
    STEP: (delta_rule, fused_recurrent_gated_delta_rule_packed_decode),
    RUNS: (delta_rule, fused_sigmoid_gating_delta_rule_update),
    UPDATE: (causal_conv1d_update, causal_conv1d_update),
    PROMPTS: (causal_conv1d_fn, causal_conv1d_fn),
}


def kernel(op: str) -> Callable[..., Any]:
    return load_target(f"sglang_fl_nvidia.flagos.{op}:{op}")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE)


def numbers(*values: int) -> Tensor:
    return torch.tensor(values, device=DEVICE, dtype=torch.int32)


def of_step(keys: int = 24, values: int = 40) -> dict[str, Any]:
    """Five requests with 2 heads and 4 value heads; no tile divides the sizes of these."""
    return {
        "mixed_qkv": normal(5, 2 * 2 * keys + 4 * values),
        "a": normal(5, 4),
        "b": normal(5, 4),
        "A_log": normal(4),
        "dt_bias": normal(4),
        "initial_state": 0.1 * normal(8, 4, values, keys),
        "initial_state_indices": numbers(7, 0, -1, 3, 4),
        "scale": keys**-0.5,
    }


def of_runs(keys: int = 24, values: int = 40) -> dict[str, Any]:
    """Two runs and a padded one, of 7 tokens; heads of query, key and value lie in one row of each token."""
    step = of_step(keys, values)
    q, k, v = normal(7, 4 * keys + 4 * values).split([2 * keys, 2 * keys, 4 * values], dim=1)
    return step | {
        "a": normal(7, 4),
        "b": normal(7, 4),
        "q": q.view(1, 7, 2, keys),
        "k": k.view(1, 7, 2, keys),
        "v": v.view(1, 7, 4, values),
        "initial_state_indices": numbers(6, -1, 2),
        "cu_seqlens": numbers(0, 3, 5, 7),
    }


def of_update(width: int = 4, channels: int = 300) -> dict[str, Any]:
    """Five requests, with channels that no tile divides."""
    return {
        "x": normal(5, channels),
        "conv_states": normal(8, channels, width - 1),
        "weight": normal(channels, width),
        "bias": normal(channels),
        "activation": "silu",
        "conv_state_indices": numbers(7, 0, -1, 3, 4),
    }


def of_prompts(sequences: int = 4, longest: int = 20, channels: int = 300) -> dict[str, Any]:
    """Sequences of 0 tokens and more; the third is padded."""
    lengths = torch.arange(sequences) * 7 % (longest + 1)
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(DEVICE, torch.int32)
    rows = torch.randperm(sequences + 3)[:sequences].to(DEVICE, torch.int32)
    rows[2] = -1
    return of_update(channels=channels) | {
        "x": normal(int(bounds[-1]), channels).t(),
        "conv_states": normal(sequences + 3, channels, 3),
        "query_start_loc": bounds,
        "cache_indices": rows,
        "has_initial_state": torch.arange(sequences, device=DEVICE) % 3 > 0,
    }


def of_chunks(keys: int = 24, values: int = 40, lengths: tuple[int, ...] = (0, 7, 70, 140)) -> dict[str, Any]:
    """Sequences of no token, of one chunk and of several; the third is padded."""
    tokens, rows = sum(lengths), torch.randperm(len(lengths) + 3)[: len(lengths)].to(DEVICE, torch.int32)
    rows[2] = -1
    q, k, v = normal(tokens, 4 * keys + 4 * values).split([2 * keys, 2 * keys, 4 * values], dim=1)
    return {
        "q": q.view(1, tokens, 2, keys),
        "k": k.view(1, tokens, 2, keys),
        "v": v.view(1, tokens, 4, values),
        "g": torch.nn.functional.logsigmoid(3 + normal(1, tokens, 4)),
        "beta": normal(1, tokens, 4).sigmoid(),
        "initial_state": 0.1 * normal(len(lengths) + 3, 4, values, keys),
        "initial_state_indices": rows,
        "cu_seqlens": numbers(0, *itertools.accumulate(lengths)),
        "scale": keys**-0.5,
    }


MAKERS = {STEP: of_step, RUNS: of_runs, UPDATE: of_update, PROMPTS: of_prompts, CHUNKS: of_chunks}


def arguments_of(op: str, **sizes: Any) -> dict[str, Any]:
    made = MAKERS[op](**sizes)
    return {name: made[name] for name in OPS[op].signature.parameters}


def copied(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: v.clone() if isinstance(v, Tensor) else v for name, v in arguments.items()}


def results(op: str, computes: Callable[..., Any], arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    """Call with copies; return results and states, without what is left open."""
    given = copied(arguments)
    return OPS[op].results(computes(**given), given)


def assert_right(op: str, arguments: dict[str, Any]) -> None:
    exactly = {
        name: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
        for name, v in arguments.items()
    }
    got, wanted = results(op, kernel(op), arguments), results(op, OPS[op].reference, exactly)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("few", [0, 1 << 30], ids=["many", "few"])
@pytest.mark.parametrize("op", [STEP, RUNS, UPDATE])
def test_every_tile(op: str, few: int, monkeypatch: pytest.MonkeyPatch):
    limits, launches = MODULES[op]
    monkeypatch.setattr(limits, "MOST_FEW", few)
    monkeypatch.setattr(launches, "_launches", {})
    assert_right(op, arguments_of(op))


@pytest.mark.parametrize("tokens", [1, 5, 8])
def test_prompts_in_tiles_of_other_tokens(tokens: int, monkeypatch: pytest.MonkeyPatch):
    """A tile of fewer tokens than taps would meet the state behind the first one too."""
    monkeypatch.setattr(causal_conv1d_fn, "TOKENS", tokens)
    monkeypatch.setattr(causal_conv1d_fn, "_launches", {})
    assert_right(PROMPTS, arguments_of(PROMPTS, channels=40))


@pytest.mark.parametrize("number", range(len(chunk_gated_delta_rule.WALKS) + 1))
def test_every_walk_through_chunks(number: int, monkeypatch: pytest.MonkeyPatch):
    walk = (*chunk_gated_delta_rule.WALKS, chunk_gated_delta_rule.NARROW)[number]._replace(most=sys.maxsize)
    monkeypatch.setattr(chunk_gated_delta_rule, "WALKS", (walk,))
    monkeypatch.setattr(chunk_gated_delta_rule, "NARROW", walk)
    monkeypatch.setattr(chunk_gated_delta_rule, "_launches", {})
    # Values that no walk's tile divides, and more of them than each has.
    assert_right(CHUNKS, arguments_of(CHUNKS, values=72))


def test_the_walk_is_the_first_that_is_for_so_many_programs(monkeypatch: pytest.MonkeyPatch):
    launched = []

    def compiled(kernel: Any, *_: Any, **constants: Any) -> Callable[..., None]:
        block, stages = constants["BLOCK"], constants["num_stages"]
        is_walk = kernel is chunk_gated_delta_rule.states_kernel
        return lambda programs, *_: launched.append((programs, block, stages)) if is_walk else None

    monkeypatch.setattr(chunk_gated_delta_rule, "compiled", compiled)
    monkeypatch.setattr(chunk_gated_delta_rule, "multiprocessors", lambda _: 132)
    monkeypatch.setattr(chunk_gated_delta_rule, "_launches", {})
    for sequences in (3, 4, 5, 8, 9):
        given = arguments_of(CHUNKS, values=128, lengths=(1,) * sequences)
        halved = {name: given[name].half() for name in ("q", "k", "v")}
        kernel(CHUNKS)(**given | halved)
    # Of 16 values there are 8 programs of each of 4 heads; of 32, four, and of 64, two.
    assert launched == [(96, 16, 4), (128, 16, 4), (80, 32, 4), (128, 32, 4), (72, 64, 3)]


def test_more_sequences_than_are_read_at_a_time():
    many = causal_conv1d_fn.SEQUENCES + 6
    assert_right(PROMPTS, arguments_of(PROMPTS, sequences=many, longest=4, channels=40))
    assert_right(CHUNKS, arguments_of(CHUNKS, lengths=(0,) * (many - 2) + (70, 3), keys=8, values=8))


def test_keys_that_are_alike_lose_nothing():
    """With equal keys and a rate of one each token takes back all that the one before has added."""
    arguments = arguments_of(CHUNKS, lengths=(0, 130, 5))
    arguments["k"] = arguments["k"][:, :1].expand_as(arguments["k"])
    arguments["beta"] = torch.ones_like(arguments["beta"])
    arguments["g"] = torch.zeros_like(arguments["g"])
    assert_right(CHUNKS, arguments)


@pytest.mark.parametrize("logarithm", [-200.0, -1e30, -torch.inf])
def test_a_token_that_wipes_a_state_out_leaves_the_others_their_digits(logarithm: float):
    arguments = arguments_of(CHUNKS, lengths=(0, 130, 5))
    arguments["g"][0, [3, 64, 100]] = logarithm
    assert_right(CHUNKS, arguments)


def test_what_is_not_finite_stays_in_its_sequence():
    arguments = arguments_of(CHUNKS)
    begin, end = arguments["cu_seqlens"][1:3].tolist()
    right = results(CHUNKS, kernel(CHUNKS), arguments)
    arguments["v"][:, begin:end] = torch.nan
    got = results(CHUNKS, kernel(CHUNKS), arguments)
    slot = arguments["initial_state_indices"][1]
    assert got[0][:, begin:end].isnan().any()
    assert torch.equal(got[0][:, end:], right[0][:, end:])
    others = torch.arange(len(got[2]), device=DEVICE) != slot
    assert got[2][slot].isnan().any()
    assert torch.equal(got[2][others], right[2][others])


@pytest.mark.parametrize("op", OURS)
def test_two_calls_give_the_same_bits(op: str):
    arguments = arguments_of(op)
    one, other = (results(op, kernel(op), arguments) for _ in range(2))
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("op", [STEP, RUNS, CHUNKS])
def test_padding_gets_zeros_whatever_its_row_holds(op: str):
    """A server's later layers read those rows too."""
    arguments = arguments_of(op)
    third = slice(*arguments["cu_seqlens"][2:4].tolist()) if op == CHUNKS else slice(3, 5)
    rows = slice(2, 3) if op == STEP else (0, third)
    for name in ("mixed_qkv", "v"):
        if name in arguments:
            arguments[name][rows] = torch.nan
    outputs = kernel(op)(**arguments)
    assert not (outputs[0] if op == CHUNKS else outputs)[rows].any()


@pytest.mark.parametrize(
    "bounds", [(60, 100, 101, 101), (0, 0, 0, 7), (140, 140, 140, 140), (9, 9, 9, 9)], ids=str
)
def test_tokens_in_no_sequence_get_zeros(bounds: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    """A server pads the tokens of a batch, and its later layers read those rows too."""
    arguments = arguments_of(CHUNKS, lengths=(0, 70, 70)) | {"cu_seqlens": numbers(*bounds)}
    wanted = results(CHUNKS, OPS[CHUNKS].reference, arguments)
    new_empty = Tensor.new_empty

    def spoiled(tensor: Tensor, *sizes: Any, **more: Any) -> Tensor:
        fresh = new_empty(tensor, *sizes, **more)
        return fresh.fill_(torch.nan) if fresh.is_floating_point() else fresh

    monkeypatch.setattr(Tensor, "new_empty", spoiled)
    given = copied(arguments)
    outputs = kernel(CHUNKS)(**given)
    torch.testing.assert_close(OPS[CHUNKS].results(outputs, given), wanted, rtol=1e-4, atol=1e-4)
    assert not outputs[0][:, : bounds[0]].any()
    assert not outputs[0][:, bounds[-1] :].any()


def test_tokens_without_any_sequence_get_zeros():
    arguments = arguments_of(CHUNKS) | {"cu_seqlens": numbers(5)}
    arguments["initial_state_indices"] = arguments["initial_state_indices"][:0]
    assert not kernel(CHUNKS)(**arguments)[0].any()


@pytest.mark.parametrize("name", ["initial_state_indices", "cu_seqlens"])
@pytest.mark.parametrize("op", [RUNS, CHUNKS])
def test_lists_of_two_axes_are_refused_after_a_right_call_too(op: str, name: str):
    arguments = arguments_of(op)
    kernel(op)(**arguments)
    for computes in (kernel(op), OPS[op].reference):
        with pytest.raises(ContractError, match=f"{op}: .* need four axes"):
            computes(**arguments | {name: arguments[name][:, None]})


@pytest.mark.parametrize("op", OURS)
def test_weights_are_read_as_they_lie(op: str):
    arguments = arguments_of(op)
    for name in ("A_log", "dt_bias", "weight", "bias"):
        if name in arguments:
            arguments[name] = torch.stack([arguments[name]] * 3, dim=-1)[..., 1]
    assert_right(op, arguments)


@pytest.mark.parametrize("op", [STEP, RUNS, CHUNKS])
def test_states_far_apart_are_taken_and_states_with_gaps_refused(op: str):
    arguments = arguments_of(op)
    pool = arguments["initial_state"]
    arguments["initial_state"] = torch.cat([pool, pool], dim=1)[:, :4]
    assert_right(op, arguments)
    arguments["initial_state"] = torch.cat([pool, pool], dim=3)[..., :24]
    with pytest.raises(UnsupportedError, match="states that are dense"):
        kernel(op)(**arguments)


@pytest.mark.parametrize(
    ("op", "size"), [(STEP, "keys"), (RUNS, "keys"), (UPDATE, "width"), (CHUNKS, "keys")]
)
def test_what_does_not_fit_into_a_program_is_refused(op: str, size: str):
    too_much = {"keys": delta_rule.MOST_KEYS + 1, "width": 17}[size]
    with pytest.raises(UnsupportedError, match="takes at most"):
        kernel(op)(**arguments_of(op, **{size: too_much}))


def test_float32_of_a_chunk_fits_with_half_as_many_keys():
    with pytest.raises(UnsupportedError, match=r"in torch\.float32 it takes at most 128 keys, not 129"):
        kernel(CHUNKS)(**arguments_of(CHUNKS, keys=129))


#: For each op an argument and the part of it that is too little.
SHORT = (
    (STEP, "a", (slice(None), slice(3))),
    (STEP, "b", (slice(4),)),
    (STEP, "A_log", (slice(3),)),
    (STEP, "mixed_qkv", (slice(None), slice(96, None))),
    (STEP, "initial_state_indices", (slice(4),)),
    (RUNS, "b", (slice(6),)),
    (RUNS, "dt_bias", (slice(3),)),
    (RUNS, "k", (slice(None), slice(6))),
    (RUNS, "q", (slice(None), slice(None), slice(None), slice(20))),
    (RUNS, "cu_seqlens", (slice(3),)),
    (UPDATE, "weight", (slice(200),)),
    (UPDATE, "bias", (slice(200),)),
    (UPDATE, "conv_state_indices", (slice(4),)),
    (CHUNKS, "k", (slice(None), slice(6))),
    (CHUNKS, "g", (slice(None), slice(6))),
    (CHUNKS, "beta", (slice(None), slice(None), slice(3))),
    (CHUNKS, "cu_seqlens", (slice(3),)),
    (PROMPTS, "conv_states", (slice(None), slice(200))),
    (PROMPTS, "query_start_loc", (slice(4),)),
    (PROMPTS, "has_initial_state", (slice(3),)),
)


@pytest.mark.parametrize(("op", "name", "part"), SHORT, ids=[f"{op}-{name}" for op, name, _ in SHORT])
def test_what_does_not_fit_is_refused_after_a_right_call_too(op: str, name: str, part: tuple[slice, ...]):
    arguments = arguments_of(op)
    kernel(op)(**copied(arguments))
    arguments[name] = arguments[name][part]
    before = copied(arguments)
    for computes in (kernel(op), OPS[op].reference):
        with pytest.raises(ContractError, match=op):
            computes(**arguments)
    assert all(torch.equal(arguments[n], v) for n, v in before.items() if isinstance(v, Tensor))


@pytest.mark.parametrize("op", OURS)
def test_states_that_share_memory_are_refused(op: str):
    arguments = arguments_of(op)
    name = OPS[op].updates[0]
    arguments[name] = arguments[name][:1].expand_as(arguments[name])
    with pytest.raises(ContractError, match="share memory"):
        kernel(op)(**arguments)

"""The references of attention where PyTorch's own kernel for a CPU computes them."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_fl.ops import OPS, Bound, Case, Op
from tests.ops.shared.distance import errors

ATTENTION = [OPS[name] for name in ("decode_attention", "extend_attention")]
CASES = [pytest.param(op, case, id=f"{op}-{case}") for op in ATTENTION for case in op.cases]
#: Half a unit by the rounding of the result, half of one by those of the weights; logarithms need more.
BOUND = Bound(half=1, single=64)


@pytest.fixture(params=[False, True], ids=["without AMX", "with AMX"])
def has_amx(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The processor has units for products in bfloat16, or not, as far as prompts are concerned."""
    module = importlib.import_module("sglang_fl.ops.extend_attention")
    monkeypatch.setattr(module, "_multiplies_bfloat16", lambda: request.param)
    return request.param


def sequences(op: Op, dtype: torch.dtype, lengths: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    """Return arguments: sequences of so many keys, of prompts all of them new; heads share keys by twos."""
    random, tokens = torch.Generator().manual_seed(seed), sum(lengths)
    keys, values = (torch.randn(tokens, 2, 64, generator=random).to(dtype) for _ in range(2))
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    if op.name == "decode_attention":
        lists = {
            "k_buffer": keys,
            "v_buffer": values,
            "kv_indptr": bounds,
            "kv_indices": torch.arange(tokens),
        }
        rows = len(lengths)
    else:
        pools = {"k_buffer": keys[:1], "v_buffer": values[:1]}
        nothing = {"kv_indptr": torch.zeros_like(bounds), "kv_indices": torch.arange(0)}
        lists = {"k": keys, "v": values, **pools, "qo_indptr": bounds, **nothing}
        rows = tokens
    return {"q": torch.randn(rows, 4, 64, generator=random).to(dtype), **lists, "scale": 0.125}


def keys_of(op: Op, arguments: dict[str, Any]) -> Tensor:
    return arguments["k_buffer" if op.name == "decode_attention" else "k"]


@pytest.mark.parametrize(("op", "case"), CASES)
def test_weights_in_bfloat16_cost_less_than_the_rounding_of_the_result(op: Op, case: Case, has_amx: bool):
    arguments = case.arguments(torch.bfloat16)
    if not arguments.get("return_lse"):
        assert errors(op, arguments, BOUND) == []


@pytest.mark.parametrize("op", ATTENTION, ids=str)
def test_long_sequences_keep_that_bound(op: Op, has_amx: bool):
    assert errors(op, sequences(op, torch.bfloat16, (700, 1, 1300)), BOUND) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("length", [1, 3, 17, 600])
@pytest.mark.parametrize("op", ATTENTION, ids=str)
def test_query_that_is_no_number_gives_none(op: Op, length: int, dtype: torch.dtype, has_amx: bool):
    arguments = sequences(op, dtype, (length, 5))
    arguments["q"][0, 2, 7] = torch.nan
    found, clean = op.reference(**arguments), op.reference(**sequences(op, dtype, (length, 5)))
    assert found[0, 2].isnan().all()
    found[0, 2] = clean[0, 2]
    assert torch.equal(found, clean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("op", ATTENTION, ids=str)
def test_keys_that_are_no_numbers_are_not_left_out_at_the_beginning(
    op: Op, dtype: torch.dtype, has_amx: bool
):
    arguments = sequences(op, dtype, (5, 600))
    keys_of(op, arguments)[5:530, 1] = torch.nan
    found, clean = op.reference(**arguments), op.reference(**sequences(op, dtype, (5, 600)))
    of_second = slice(1, None) if op.name == "decode_attention" else slice(5, None)
    assert found[of_second, 2:].isnan().all()
    found[of_second, 2:] = clean[of_second, 2:]
    assert torch.equal(found, clean)


def test_long_sequence_is_read_some_heads_at_a_time(monkeypatch: pytest.MonkeyPatch):
    module = importlib.import_module("sglang_fl.ops.decode_attention")
    compute, heads = module.scaled_dot_product_attention, []

    def counted(query: Tensor, *rest: Any, **options: Any) -> Tensor:
        heads.append(len(query))
        return compute(query, *rest, **options)

    monkeypatch.setattr(module, "scaled_dot_product_attention", counted)
    op = OPS["decode_attention"]
    arguments = sequences(op, torch.float32, (2**13 + 5, 3))
    op.reference(**arguments)
    assert heads == [1, 1, 2]  # of the long sequence one after the other, of the short one both
    assert errors(op, arguments) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op", ATTENTION, ids=str)
def test_keys_of_minus_infinity_have_no_weight(op: Op, dtype: torch.dtype, has_amx: bool):
    """Wherever they lie: a whole block of them too. A sequence that has no others gives 0."""
    arguments = sequences(op, dtype, (400, 130))
    arguments["q"].abs_()
    keys = keys_of(op, arguments)
    keys[:300] = keys[400:] = -torch.inf
    first = 0 if op.name == "decode_attention" else slice(300, 400)
    second = 1 if op.name == "decode_attention" else slice(400, 530)
    for options in ({}, {"return_lse": True}):
        outputs = op.reference(**arguments, **options)
        o, *lse = (outputs,) if isinstance(outputs, Tensor) else outputs
        assert o[first].isfinite().all()
        assert o[first].any()
        assert not o[second].any()
        assert all(bool((sums[second] == -torch.inf).all()) for sums in lse)

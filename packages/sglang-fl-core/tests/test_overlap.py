"""Whether memory is an argument's own: expanded rows, windows, packed projections, weights inside of rows."""

import pytest
import torch
from torch import Tensor

from sglang_fl.ops import OPS, renormalized, shares_memory, unshared


def memory(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


ALONE = {
    "dense": memory(3, 8),
    "rows-apart": memory(3, 12)[:, :8],
    "transposed": memory(8, 3).t(),
    "every-second-element": memory(3, 16)[:, ::2],
    "one-row-of-any-stride": memory(1, 8).as_strided((1, 8), (3, 1)),
    "nothing": memory(0, 8),
    "nothing-expanded": memory(1, 8)[:, :0].expand(3, 0),
    "a-number": torch.tensor(1.0),
    "heads-with-a-gate-between": memory(3, 4, 16)[..., :8],
}
SHARED = {
    "expanded": memory(1, 8).expand(3, 8),
    "windows": memory(40).as_strided((3, 8), (4, 1)),
    "expanded-heads": memory(3, 1, 8).expand(3, 2, 8),
}


@pytest.mark.parametrize("name", ALONE)
def test_elements_that_lie_apart_share_nothing(name: str):
    assert not shares_memory(ALONE[name])
    assert unshared(ALONE[name]) is ALONE[name]


@pytest.mark.parametrize("name", SHARED)
def test_elements_in_one_place_share_it(name: str):
    x = SHARED[name]
    assert shares_memory(x)
    assert torch.equal(unshared(x), x)
    assert not shares_memory(unshared(x))


def test_slices_of_a_packed_projection_are_apart():
    packed = memory(5, 32)
    query, key, value = packed[:, :16], packed[:, 16:24], packed[:, 24:]
    assert not shares_memory(query, key, value, None, 1e-6)
    assert not shares_memory(key, query, value)
    heads = query.view(5, 2, 8)
    assert not shares_memory(heads, key)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda m: m[:3], lambda m: m[:3]),
        (lambda m: m[:3], lambda m: m[1:4]),
        (lambda m: m[1:4], lambda m: m[:3]),
        (lambda m: m[:3], lambda m: m[2]),
        (lambda m: m[:, :5], lambda m: m[:, 4:]),
        (lambda m: m[:, 4:], lambda m: m[:, :5]),
        (lambda m: m[:, :4], lambda m: m.view(torch.int32)[:, 3:]),
        (lambda m: m[0], lambda m: m[:, 0]),
    ],
    ids=[
        "same",
        "a-row-later",
        "a-row-before",
        "its-last-row",
        "a-column",
        "turned",
        "as-bits",
        "a-column-of-it",
    ],
)
def test_arguments_in_each_others_memory_share_it(one, other):
    block = memory(4, 8)
    assert shares_memory(one(block), other(block))
    assert shares_memory(other(block), one(block))


def test_other_memory_is_not_shared():
    assert not shares_memory(memory(3, 8), memory(3, 8), memory(8))
    block = memory(4, 8)
    assert not shares_memory(block[:2], block[2:])


def test_what_shares_memory_may_not_be_written():
    op, weight = OPS["rms_norm"], torch.ones(8)
    x, residual = memory(3, 8), memory(3, 8)

    def may_write(x: Tensor, residual: Tensor, weight: Tensor = weight) -> tuple[str, ...]:
        return op.may_write({"x": x, "weight": weight, "eps": 1e-6, "residual": residual})

    assert may_write(x, residual) == ("x", "residual")
    assert may_write(x, x) == ()
    assert may_write(x[:1].expand(3, 8), residual) == ("residual",)
    assert may_write(x, residual, x[0]) == ("residual",)


def test_states_that_share_memory_are_outside_of_the_contract():
    for name in (name for name, op in OPS.items() if op.updates):
        cases = (case.arguments(torch.float32) for case in OPS[name].cases if "one-" in case.name)
        given = next(arguments for arguments in cases if OPS[name].updated(arguments))
        for updated in OPS[name].updates:
            shared = given[updated][:1].expand(given[updated].shape)
            with pytest.raises(ValueError, match="share memory"):
                OPS[name].reference(**given | {updated: shared})


def test_weights_that_have_underflowed_stay_zero():
    assert renormalized(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2
    assert renormalized(torch.tensor([[1.0, 3.0]])).tolist() == [[0.25, 0.75]]

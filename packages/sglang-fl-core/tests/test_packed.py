"""Packed keys: each sequence's prefix before its new tokens, and no copy where nothing has a prefix."""

import torch
from torch import Tensor

from sglang_fl.ops.shared.packed import pack


def rows(*numbers: int) -> Tensor:
    """Return one head of two elements for each number."""
    return torch.tensor(numbers).view(-1, 1, 1).expand(-1, 1, 2).float()


def numbers(keys: Tensor) -> list[float]:
    return keys[:, 0, 0].tolist()


POOL = rows(*range(100, 110))


def test_prefixes_come_before_the_new_tokens_of_their_sequence():
    bounds, lists, slots = torch.tensor([0, 2, 5]), torch.tensor([1, 4, 5]), torch.tensor([9, 3, 1, 7, 8])
    packed = pack(rows(*range(5)), rows(*range(10, 15)), POOL, POOL, bounds, lists, slots)
    assert (packed.rows, packed.new, packed.whole) == (slice(0, 5), [2, 3], [5, 4])
    assert numbers(packed.keys) == [103, 101, 107, 0, 1, 108, 2, 3, 4]
    assert numbers(packed.values) == [103, 101, 107, 10, 11, 108, 12, 13, 14]


def test_sequences_without_new_tokens_are_left_out_with_their_prefix():
    bounds, lists = torch.tensor([0, 0, 2, 2]), torch.tensor([0, 2, 3, 5])
    new = rows(*range(4))  # the last two are padding
    packed = pack(new, new, POOL, POOL, bounds, lists, torch.tensor([1, 2, 3, 4, 5]))
    assert (packed.rows, packed.new, packed.whole) == (slice(0, 2), [2], [3])
    assert numbers(packed.keys) == [103, 0, 1]


def test_without_a_prefix_nothing_is_copied():
    new, bounds, none = rows(1, 2, 3).contiguous(), torch.tensor([0, 1, 3]), torch.tensor([0, 0, 0])
    packed = pack(new, new, POOL, POOL, bounds, none.int(), torch.tensor([], dtype=torch.int64))
    assert packed.keys.data_ptr() == new.data_ptr()
    assert packed.whole == packed.new == [1, 2]


def test_a_call_without_sequences_has_nothing():
    nothing = torch.tensor([0])
    packed = pack(rows(), rows(), POOL, POOL, nothing, nothing, nothing[:0])
    assert (packed.rows, packed.new, packed.whole, len(packed.keys)) == (slice(0, 0), [], [], 0)

"""Tables of slots: rows of one length, and nothing in them that a sequence does not have."""

import pytest
import torch

from sglang_fl.ops.shared.slots import longest, table_of_slots


@pytest.mark.parametrize("bounds", [torch.int32, torch.int64], ids=str)
def test_rows_are_filled_up_with_their_own_last_slot(bounds: torch.dtype):
    kv_indptr = torch.tensor([1, 3, 6, 7], dtype=bounds)
    kv_indices = torch.tensor([90, 11, 12, 21, 22, 23, 31, 91])
    assert longest(kv_indptr, kv_indices) == 3
    table, is_slot = table_of_slots(kv_indptr, kv_indices, 3)
    assert table.tolist() == [[11, 12, 12], [21, 22, 23], [31, 31, 31]]
    assert is_slot.tolist() == [[True, True, False], [True] * 3, [True, False, False]]


def test_a_sequence_without_slots_has_none_of_its_row():
    kv_indptr, kv_indices = torch.tensor([0, 0, 2, 2]), torch.tensor([5, 6])
    table, is_slot = table_of_slots(kv_indptr, kv_indices, 2)
    assert is_slot.tolist() == [[False, False], [True, True], [False, False]]
    assert table[1].tolist() == [5, 6]
    assert set(table.flatten().tolist()) == {5, 6}  # whatever is read lies in the pool


@pytest.mark.parametrize(("bounds", "most"), [([0], 0), ([0, 0, 0], 0), ([4, 4, 9], 5)], ids=str)
def test_the_longest_is_that_of_the_bounds(bounds: list[int], most: int):
    assert longest(torch.tensor(bounds), torch.arange(20)) == most

"""Which keys of its sequence a new token sees: in a text, in a window, in a tree of drafts."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.shared.attention import temperatures

__all__ = ["Seen", "trees_of"]

#: Queries of a sequence at a time: keys that come later than all of them are left out.
_QUERIES = 256
#: Scores that are formed at a time, 64 MB: of a long text fewer queries are taken.
_SCORES = 2**24


@dataclass(frozen=True)
class Seen:
    """Which keys of a sequence a query sees; both are counted from the sequence's first key."""

    is_causal: bool
    window: int
    keys: int
    tree: Tensor | None

    def is_text(self, new: int) -> bool:
        """Whether so many new tokens are all there is, and each sees all before it and itself."""
        return self.is_causal and self.window < 0 and self.tree is None and self.keys == new

    def steps(
        self, new: int, heads: int, device: torch.device
    ) -> Iterator[tuple[slice, slice, Tensor | None]]:
        """Yield which of so many new tokens are taken at a time, keys that any sees, and which each sees."""
        step = max(16, min(_QUERIES, _SCORES // (heads * self.keys)))
        for begin in range(0, new, step):
            rows = slice(begin, min(begin + step, new))
            places = range(rows.start + self.keys - new, rows.stop + self.keys - new)
            block = self._by(places)
            yield rows, block, self._mask(places, block, device)

    def _by(self, queries: range) -> slice:
        """Return the keys that any of these queries sees."""
        if self.tree is not None:
            return slice(0, self.keys)
        first = max(0, queries.start - self.window) if self.window >= 0 else 0
        return slice(first, queries.stop if self.is_causal else self.keys)

    def _mask(self, queries: range, keys: slice, device: torch.device) -> Tensor | None:
        """Return which of these keys each query sees, (N, L); None: each sees all."""
        if self.tree is not None:
            return self._in_tree(queries, self.tree)
        is_full = self.window < 0 and (not self.is_causal or len(queries) == 1)
        if is_full:
            return None
        ones = torch.ones(len(queries), keys.stop - keys.start, dtype=torch.bool, device=device)
        own = queries.start - keys.start  # the first query's own key
        if self.is_causal:
            ones = ones.tril(own)
        return ones.triu(own - self.window) if self.window >= 0 else ones

    def temperatures(self, new: int, temperature_len: int, like: Tensor) -> Tensor:
        """Return what the scores of so many new tokens are multiplied by, (N,), in the dtype of a tensor."""
        return temperatures(self._places(like.device)[self.keys - new :].to(like), temperature_len)

    def _places(self, device: torch.device) -> Tensor:
        """Return how many keys stand before each in the text, (L,)."""
        places = torch.arange(self.keys, device=device)
        if self.tree is not None:
            prefix = self.keys - len(self.tree)
            places[prefix:] = prefix + self.tree.sum(1) - 1
        return places

    def _in_tree(self, queries: range, tree: Tensor) -> Tensor:
        prefix = self.keys - len(tree)
        is_seen = torch.nn.functional.pad(tree, (prefix, 0), value=True)
        if self.window >= 0:
            places = self._places(tree.device)
            is_seen &= places[prefix:, None] - places <= self.window
        return is_seen[queries.start - prefix : queries.stop - prefix]


def trees_of(
    custom_mask: Tensor | None, mask_indptr: Tensor | None, qo_indptr: Tensor
) -> list[Tensor | None]:
    """Return which new tokens each new token of a sequence sees, (N, N), of each sequence.

    Raises
    ------
    ContractError : the mask ends before that of the last sequence
    """
    counts = qo_indptr.diff().tolist()
    if custom_mask is None or mask_indptr is None:
        return [None] * len(counts)
    begins = mask_indptr.tolist()
    for number, count in enumerate(counts):
        if begins[number] + count**2 > len(custom_mask):
            raise ContractError(
                f"extend_attention: custom_mask {tuple(custom_mask.shape)} has no {count} x {count} elements "
                f"behind {begins[number]}, for sequence {number}"
            )
    return [
        custom_mask[begin : begin + count**2].view(count, count)
        for begin, count in zip(begins, counts, strict=False)
    ]

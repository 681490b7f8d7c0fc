"""Where the keys and values of a batch lie in a pool: bounds and slots, made in plain PyTorch."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["SlotLists", "bounds_of"]


def bounds_of(lengths: Tensor) -> Tensor:
    """Return where each of some runs begins and the last one ends: (B + 1,), int64."""
    return torch.nn.functional.pad(lengths.long().cumsum(0), (1, 0))


class SlotLists:
    """The slots of the sequences of a batch, the last ones of each; a list that was made once is kept.

    Parameters
    ----------
    req_to_token : Tensor, (rows, most tokens), int32: the slot of each token of each request
    rows : Tensor, (B,): the row of each sequence
    lengths : Tensor, (B,): how many tokens of each are in the pool
    to_window_pool : translates slots to those of the pool of layers with a window; None where they have none
    """

    def __init__(
        self,
        req_to_token: Tensor,
        rows: Tensor,
        lengths: Tensor,
        to_window_pool: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._req_to_token = req_to_token
        self._rows = rows.long()
        self._lengths = lengths.long()
        self._to_window_pool = to_window_pool
        self._made: dict[tuple[int | None, bool], tuple[Tensor, Tensor]] = {}

    def last(self, most: int | None, is_window_pool: bool) -> tuple[Tensor, Tensor]:
        """Return bounds, (B + 1,), and slots, both int64.

        Parameters
        ----------
        most : of each sequence so many, the last ones; None: all
        is_window_pool : whether the layer has its keys in the pool of layers with a window
        """
        key = (most, is_window_pool)
        if key not in self._made:
            self._made[key] = self._make(most, is_window_pool)
        return self._made[key]

    def _make(self, most: int | None, is_window_pool: bool) -> tuple[Tensor, Tensor]:
        counts = self._lengths if most is None else self._lengths.clamp_max(most)
        bounds = bounds_of(counts)
        owner = torch.repeat_interleave(counts)
        begin = self._lengths - counts - bounds[:-1]
        places = torch.arange(len(owner), device=owner.device) + begin[owner]
        slots = self._req_to_token[self._rows[owner], places].long()
        if is_window_pool and self._to_window_pool is not None:
            slots = self._to_window_pool(slots)
        return bounds, slots

"""Where the keys and values of a batch lie in a pool, and who sees them: made in plain PyTorch."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["SlotLists", "bounds_of", "masks_of_trees"]


def bounds_of(lengths: Tensor) -> Tensor:
    """Return where each of some runs begins and the last one ends: (B + 1,), int64."""
    return torch.nn.functional.pad(lengths.long().cumsum(0), (1, 0))


def masks_of_trees(custom_mask: Tensor, prefixes: Tensor, drafts: int) -> dict[str, Tensor]:
    """Return the options of ``extend_attention`` for drafted tokens.

    Parameters
    ----------
    custom_mask : Tensor, (M,), bool or an integer dtype: SGLang's mask, for each sequence as many rows as it
        has drafts, with a column for each token of the prefix and for each draft
    prefixes : Tensor, (B,): how long each prefix is
    drafts : how many each sequence has
    """
    widths = prefixes + drafts
    place = torch.arange(drafts, device=prefixes.device)
    begins = bounds_of(drafts * widths)[:-1] + prefixes
    elements = begins[:, None, None] + place[:, None] * widths[:, None, None] + place
    return {
        "custom_mask": custom_mask[elements.flatten()].bool(),
        "mask_indptr": drafts**2 * torch.arange(len(prefixes) + 1, device=prefixes.device),
    }


class SlotLists:
    """The slots of the sequences of a batch, the last ones of each; a list that was made once is kept.

    Parameters
    ----------
    req_to_token : Tensor, (rows, most tokens), int32: the slot of each token of each request
    rows : Tensor, (B,): the row of each sequence
    lengths : Tensor, (B,): how many tokens of each are in the pool
    to_window_pool : translates slots to those of the pool of layers with a window; None where they have none
    skipped : Tensors, (B,): behind so many tokens of a sequence so many slots of its row are those of others
    """

    def __init__(
        self,
        req_to_token: Tensor,
        rows: Tensor,
        lengths: Tensor,
        to_window_pool: Callable[[Tensor], Tensor] | None = None,
        skipped: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self._req_to_token = req_to_token
        self._rows = rows.long()
        self._lengths = lengths.long()
        self._to_window_pool = to_window_pool
        self._skipped = skipped
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
        if self._skipped is not None:
            behind, count = self._skipped
            places += torch.where(places >= behind[owner], count[owner], 0)
        slots = self._req_to_token[self._rows[owner], places].long()
        if is_window_pool and self._to_window_pool is not None:
            slots = self._to_window_pool(slots)
        return bounds, slots

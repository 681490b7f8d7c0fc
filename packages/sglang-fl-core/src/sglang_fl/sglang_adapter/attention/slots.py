"""Where the keys and values of a batch lie in a pool, and who sees them: made in plain PyTorch."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["SlotLists", "bounds_of", "cut_at_chunks", "masks_of_trees"]


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


def cut_at_chunks(prefixes: Tensor, new: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Cut the new tokens of sequences where a chunk of the text ends: each piece is a sequence for the op.

    The first piece of a sequence has those tokens of the prefix before it that are of its chunk, as
    ``SlotLists.of_chunk`` lists them; the others have no prefix.

    Parameters
    ----------
    prefixes, new : Tensors, (B,): how many tokens of each sequence are in the pool, and how many are new
    chunk : how many tokens a chunk has

    Returns
    -------
    qo_indptr, kv_indptr : Tensors, (pieces + 1,), int64: bounds of the new tokens and of the prefixes
    """
    before = prefixes.long() % chunk
    ends = before + new.long()
    pieces = (ends + chunk - 1) // chunk
    owner = torch.repeat_interleave(pieces)
    number = torch.arange(len(owner), device=owner.device) - bounds_of(pieces)[owner]
    end = torch.minimum((number + 1) * chunk, ends[owner])
    of_prefix = torch.where(number == 0, before[owner], 0)
    return bounds_of(end - number * chunk - of_prefix), bounds_of(of_prefix)


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
        self._made: dict[tuple[str, int | None, bool], tuple[Tensor, Tensor]] = {}

    def last(self, most: int | None, is_window_pool: bool) -> tuple[Tensor, Tensor]:
        """Return bounds, (B + 1,), and slots, both int64.

        Parameters
        ----------
        most : of each sequence so many, the last ones; None: all
        is_window_pool : whether the layer has its keys in the pool of layers with a window
        """
        counts = self._lengths if most is None else self._lengths.clamp_max(most)
        return self._list(("last", most, is_window_pool), counts)

    def of_chunk(self, chunk: int, is_own_there: bool, is_window_pool: bool) -> tuple[Tensor, Tensor]:
        """Return bounds, (B + 1,), and slots, both int64, of those that are in one chunk with the next token.

        Parameters
        ----------
        chunk : how many tokens a chunk has
        is_own_there : whether that token is itself the last in the pool
        is_window_pool : as of ``last``
        """
        own = int(is_own_there)
        counts = (self._lengths - own) % chunk + own
        return self._list(("chunk", chunk, is_window_pool), counts)

    def _list(self, key: tuple[str, int | None, bool], counts: Tensor) -> tuple[Tensor, Tensor]:
        if key not in self._made:
            self._made[key] = self._make(counts, is_window_pool=key[-1])
        return self._made[key]

    def _make(self, counts: Tensor, is_window_pool: bool) -> tuple[Tensor, Tensor]:
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

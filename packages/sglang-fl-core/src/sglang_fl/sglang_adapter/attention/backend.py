"""SGLang's side of the ops ``decode_attention``, ``extend_attention`` and ``kv_cache_write``.

It makes lists of slots in plain PyTorch and hands them with SGLang's pools of keys and values to three
kernels, which layer 2 chooses. It launches no kernel itself.

Two kinds of attention are lists alone. A new token that attends to an encoder's tokens sees all of them, and
none of its own sequence: that is ``decode_attention``, with the encoder's slots for each new token. Of a text
in chunks a token sees those of its own chunk: the pieces of a prompt that a chunk's end cuts are sequences.
"""

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops.shared.scales import factors
from sglang_fl.sglang_adapter.attention.eight_bit import NEEDS, is_latent, scales_of
from sglang_fl.sglang_adapter.attention.kernels import AttentionKernels
from sglang_fl.sglang_adapter.attention.limits import layers_of, needs_of, options_of
from sglang_fl.sglang_adapter.attention.slots import SlotLists, bounds_of, cut_at_chunks, masks_of_trees

__all__ = ["PagedAttention"]


class PagedAttention(AttentionBackend):  # type: ignore[misc]
    """Attention over SGLang's pools, without graphs.

    Parameters
    ----------
    runner : SGLang's ``ModelRunner``, with model and pools; see ``limits`` for what it may not be
    kernels : by which it computes; None: by its own
    """

    def __init__(self, runner: Any, kernels: AttentionKernels | None = None) -> None:
        super().__init__()
        self.token_to_kv_pool = runner.token_to_kv_pool
        self.req_to_token_pool = runner.req_to_token_pool
        # Wrappers of hybrid models copy it from here before SGLang sets it.
        self.kv_index_translator = getattr(runner, "kv_index_translator", None)
        self.forward_metadata: SlotLists | None = None
        of_pools = NEEDS if runner.kv_cache_dtype.itemsize < 2 else ()
        self.kernels = kernels or AttentionKernels(needs_of(layers_of(runner)).union(of_pools))
        self._chunk: int | None = getattr(runner, "attention_chunk_size", None)
        self._new_bounds: Tensor | None = None
        self._pieces: tuple[Tensor, Tensor] | None = None
        self._encoder_slots: SlotLists | None = None
        self._trees: dict[str, Tensor] = {}
        self._window_loc: Tensor | None = None
        self._layers_in_window_pool: frozenset[int] = frozenset()
        if isinstance(self.token_to_kv_pool, SWAKVPool):
            mapping = self.token_to_kv_pool.layers_mapping
            self._layers_in_window_pool = frozenset(layer for layer, (_, is_in) in mapping.items() if is_in)

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Take down where the tokens of a batch lie; lists are made when the first layer asks for them."""
        mode, new = forward_batch.forward_mode, None
        self._trees = {}
        if mode.is_target_verify():
            lengths, drafts = forward_batch.seq_lens, forward_batch.spec_info
            self._new_bounds = drafts.draft_token_num * torch.arange(len(lengths) + 1, device=lengths.device)
            if drafts.custom_mask is not None:
                self._trees = masks_of_trees(drafts.custom_mask, lengths, drafts.draft_token_num)
        elif mode.is_decode_or_idle():
            lengths, self._new_bounds = forward_batch.seq_lens, None
        else:
            lengths, new = forward_batch.extend_prefix_lens, forward_batch.extend_seq_lens
            self._new_bounds = bounds_of(new)
            if self._chunk is not None:
                self._pieces = cut_at_chunks(lengths, new, self._chunk)
        encoded = forward_batch.encoder_lens
        self.forward_metadata = SlotLists(
            self.req_to_token_pool.req_to_token,
            forward_batch.req_pool_indices,
            lengths,
            self._write_at(forward_batch.out_cache_loc),
            skipped=None if encoded is None else (torch.zeros_like(encoded), encoded),
        )
        if encoded is not None:
            # A row begins with the slots of the encoder's tokens, all of which each new token sees.
            each = torch.ones_like(encoded) if new is None else new
            self._encoder_slots = SlotLists(
                self.req_to_token_pool.req_to_token,
                forward_batch.req_pool_indices.repeat_interleave(each),
                encoded.repeat_interleave(each),
            )

    def init_draft_step(self, forward_batch: Any, step: int, branches: int, steps: int) -> None:
        """Take that down for a step of a draft model, which goes on from its own tokens.

        Parameters
        ----------
        forward_batch : of all steps: its lengths are those of the tokens before the drafts
        step : 0 is the first
        branches, steps : the slots behind a request's last token are so many branches of so many drafts
        """
        lengths = forward_batch.seq_lens.repeat_interleave(branches)
        branch = torch.arange(branches, device=lengths.device).repeat(forward_batch.batch_size)
        self.forward_metadata = SlotLists(
            self.req_to_token_pool.req_to_token,
            forward_batch.req_pool_indices.repeat_interleave(branches),
            lengths + step + 1,
            self._write_at(forward_batch.out_cache_loc.view(-1, steps)[:, step]),
            skipped=(lengths, branch * steps),
        )

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """Return how long rows are that pad a batch: data-parallel attention asks without a graph, too.

        One token, as in SGLang's Triton backend, so that no row attends to nothing.
        """
        return 1

    def forward_decode(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **given: Any,
    ) -> Tensor:
        """Run a layer for one new token of each sequence; for any number of them beside an encoder."""
        if save_kv_cache and k is not None:
            self._write(layer, forward_batch, k, v)
        if layer.is_cross_attention:
            assert self._encoder_slots is not None
            lists = self._encoder_slots.last(None, is_window_pool=False)
        elif self._is_in_chunks(layer):
            lists = self._slots_of_chunk(layer, is_own_there=True)
        else:
            window = layer.sliding_window_size
            # The own key is one of the slots; ``window`` counts those before it.
            lists = self._slots(layer, window + 1 if window > -1 else None)
        pools = self._pools(layer)
        options = _options(layer, given) | scales_of(layer, pools)
        out = self.kernels.decode(_by_head(q, layer), *pools, *lists, layer.scaling, **options)
        return _as_asked(out, q, layer)

    def forward_extend(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **given: Any,
    ) -> Tensor:
        """Run a layer for the new tokens of each sequence, whose prefix is in the pool."""
        if layer.is_cross_attention:
            return self.forward_decode(q, k, v, layer, forward_batch, save_kv_cache, **given)
        options = _options(layer, given) | self._trees
        window = layer.sliding_window_size
        if window > -1:
            options["sliding_window"] = window
        if layer.attn_type == AttentionType.ENCODER_ONLY:
            options["is_causal"] = False
        if save_kv_cache and k is not None:
            self._write(layer, forward_batch, k, v)
        pools = self._pools(layer)
        if k is None or v is None:  # another layer has written them
            loc = self._window_loc if self._is_in_window_pool(layer) else forward_batch.out_cache_loc
            k, v = (
                pool[loc].to(q.dtype).mul_(scale)
                for pool, scale in zip(pools, factors(**scales_of(layer, pools)), strict=True)
            )
        new_bounds = self._new_bounds
        if self._is_in_chunks(layer):
            assert self._pieces is not None
            new_bounds, bounds = self._pieces
            lists = bounds, self._slots_of_chunk(layer, is_own_there=False)[1]
        else:
            lists = self._slots(layer, window if window > -1 else None)
        if _are_unlike(k, v, pools):
            k, v = pools = _without_prefix(k, v, lists)
        options |= scales_of(layer, pools)
        out = self.kernels.extend(
            _by_head(q, layer), k, v, *pools, new_bounds, *lists, layer.scaling, **options
        )
        return _as_asked(out, q, layer)

    def _write_at(self, loc: Tensor) -> Callable[[Tensor], Tensor] | None:
        """Note where layers with a pool of their own write; return what translates slots to that pool."""
        if not self._layers_in_window_pool:
            return None
        translate: Callable[[Tensor], Tensor] = self.token_to_kv_pool.translate_loc_from_full_to_swa
        self._window_loc = translate(loc)
        return translate

    def _is_in_window_pool(self, layer: Any) -> bool:
        return layer.layer_id in self._layers_in_window_pool

    def _slots(self, layer: Any, most: int | None) -> tuple[Tensor, Tensor]:
        assert self.forward_metadata is not None
        return self.forward_metadata.last(most, self._is_in_window_pool(layer))

    def _slots_of_chunk(self, layer: Any, is_own_there: bool) -> tuple[Tensor, Tensor]:
        assert self.forward_metadata is not None
        assert self._chunk is not None
        return self.forward_metadata.of_chunk(self._chunk, is_own_there, self._is_in_window_pool(layer))

    def _is_in_chunks(self, layer: Any) -> bool:
        return self._chunk is not None and layer.use_irope

    def _pools(self, layer: Any) -> tuple[Tensor, Tensor]:
        pool = self.token_to_kv_pool
        return pool.get_key_buffer(layer.layer_id), pool.get_value_buffer(layer.layer_id)

    def _write(self, layer: Any, forward_batch: Any, k: Tensor, v: Tensor | None) -> None:
        pools = self._pools(layer)
        if is_latent(pools):  # as the model writes those that it does not pass on
            where = KVWriteLoc.for_batch(forward_batch, swa_loc=self._window_loc)
            self.token_to_kv_pool.set_kv_buffer(layer, where, k, v)
            return
        loc = self._window_loc if self._is_in_window_pool(layer) else forward_batch.out_cache_loc
        if layer.is_cross_attention:
            loc = forward_batch.encoder_out_cache_loc
        self.kernels.write(k, v, *pools, loc, **scales_of(layer, pools))


def _by_head(q: Tensor, layer: Any) -> Tensor:
    return q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)


def _are_unlike(k: Tensor, v: Tensor, pools: tuple[Tensor, Tensor]) -> bool:
    """Whether new keys or values have other heads or elements than those in the pools."""
    return any(new.shape[1:] != pool.shape[1:] for new, pool in zip((k, v), pools, strict=True))


def _without_prefix(k: Tensor, v: Tensor, lists: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the new keys and values of each head beside a pool of latents, as the ops take them.

    A model with latent attention passes them where no sequence has a prefix. Of pools nothing is read then,
    and since those of the op have the form of what is new, what is new stands in for them, too.

    Raises
    ------
    UnsupportedError : there is a prefix
    """
    _, slots = lists
    if len(slots):
        raise UnsupportedError(
            f"the attention backend sglang_fl cannot join a prefix of latents to keys {tuple(k.shape)} and "
            f"values {tuple(v.shape)} of each head"
        )
    return k.contiguous(), v.contiguous()  # the values are every head's second part of one product


def _options(layer: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of both ops that a call needs.

    Raises
    ------
    UnsupportedError : the model passes what no op has, such as an attention bias
    """
    options = options_of(layer)
    for name, value in given.items():
        if name == "sinks" and value is not None:
            options["sinks"] = value
        elif value is not None and value is not False:
            raise UnsupportedError(
                f"the attention backend sglang_fl cannot heed {name}, which the model passes"
            )
    return options


def _as_asked(out: Tensor, q: Tensor, layer: Any) -> Tensor:
    """Return a result in the shape that SGLang's callers expect."""
    return out.flatten(1) if layer.qk_head_dim != layer.v_head_dim else out.reshape(q.shape)

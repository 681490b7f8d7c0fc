"""A part of a call of ``RadixAttention``, whichever backend runs it, as a call of one of our ops.

A whole prompt would be too much to compute again in float64, and a server's pool too much to copy. So some
sequences are drawn, of a long prompt its last tokens, of a long context some heads; their keys and values are
copied before the call, because some backends scale or rotate what they are given in its place.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sglang.srt.layers.radix_attention import AttentionType
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import OPS, Op
from sglang_fl.ops.compare import error_in_units
from sglang_fl.ops.shared.scales import factors
from sglang_fl.sglang_adapter.attention.eight_bit import scales_of
from sglang_fl.sglang_adapter.attention.limits import options_of, reasons_of
from sglang_fl.sglang_adapter.attention.slots import SlotLists, bounds_of

__all__ = ["Call", "Pools", "Sample", "take"]

#: Sequences of one call, and new tokens of each, that are looked at.
_SEQUENCES, _TOKENS = 4, 16
#: Elements of keys and values of a sequence that are looked at: 128 MB in float64.
_ELEMENTS = 2**24
#: What a model may pass beside queries, keys and values.
_UNDERSTOOD = ("sinks", "q_rope", "k_rope")


@dataclass(frozen=True)
class Call:
    """A call of a ``RadixAttention``.

    Parameters
    ----------
    layer : the layer
    q, k, v : as it gets them; ``k`` and ``v`` may be None
    batch : SGLang's ``ForwardBatch``
    is_saved : whether keys and values are to be written into the pool
    given : what the model passes beside them
    """

    layer: Any
    q: Tensor
    k: Tensor | None
    v: Tensor | None
    batch: Any
    is_saved: bool = True
    given: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """What a call must leave in the pool.

    Parameters
    ----------
    slots : Tensor, (N,)
    heads : of the pool
    keys, values : Tensors, (N, heads, D) and (N, heads, DV), float64, divided by their scales: the pool has
        them rounded
    """

    slots: Tensor
    heads: slice
    keys: Tensor
    values: Tensor

    def missing(self, buffers: tuple[Tensor, Tensor]) -> str | None:
        """Say what is not in the pool, or return None."""
        for what, buffer, wanted in zip(("keys", "values"), buffers, (self.keys, self.values), strict=True):
            found = buffer[self.slots][:, self.heads]
            if error_in_units(found, wanted) > OPS["kv_cache_write"].bound.half:
                return f"the pool has other {what} than those of the call"
        return None


@dataclass(frozen=True)
class Sample:
    """A part of a call as a call of an op.

    Parameters
    ----------
    op : ``decode_attention`` or ``extend_attention``
    arguments : of the op; none is a tensor of the call
    rows : Tensor, (N,): where the op's results are among those of the call
    heads : those that were drawn, of the call's query heads
    written : what the call must leave in the pool, if anything
    without_first_key : the arguments again where a backend may leave out the first key of a full window, as
        SGLang's Triton kernel does in decode
    own : reads what the call has left in 8 bit of the tokens that it decodes, whose keys and values are the
        last ones of each sequence; None where those of the call count
    """

    op: Op
    arguments: dict[str, Any]
    rows: Tensor
    heads: slice
    written: Written | None = None
    without_first_key: dict[str, Any] | None = None
    own: Callable[[], tuple[Tensor, Tensor]] | None = None

    def after_call(self) -> "Sample":
        """Return the sample with what the call has left in the pool."""
        if self.own is None:
            return self
        own = self.own()

        def settled(arguments: dict[str, Any]) -> dict[str, Any]:
            last = arguments["kv_indptr"][1:] - 1
            named = zip(("k_buffer", "v_buffer"), own, strict=True)
            return arguments | {name: arguments[name].index_copy(0, last, rows) for name, rows in named}

        other = None if self.without_first_key is None else settled(self.without_first_key)
        return replace(self, arguments=settled(self.arguments), without_first_key=other)

    def of(self, result: Any, layer: Any) -> Tensor:
        """Return the part of the call's result that belongs to this sample, (N, heads, DV), copied."""
        out: Tensor = result[0] if isinstance(result, tuple) else result
        return out.reshape(-1, layer.tp_q_head_num, layer.v_head_dim)[self.rows, self.heads].clone()


def take(call: Call, pools: "Pools", turn: int) -> Sample | None:
    """Return a sample of a call that is about to run, or None where it has no sequence.

    Parameters
    ----------
    call : the call
    pools : of the runner
    turn : which sequences are drawn: others in the next turn

    Raises
    ------
    UnsupportedError : no op computes what this call does, or the pool is laid out in another way
    """
    _require_known(call)
    call = _by_head(call)
    layer = call.layer
    options = options_of(layer)
    if call.given.get("sinks") is not None:
        options["sinks"] = call.given["sinks"]
    draw = _of_decode if call.batch.forward_mode.is_decode() else _of_extend
    return draw(call, _Context(call, pools), options, turn)


class Pools:
    """The pools of a runner.

    Parameters
    ----------
    runner : SGLang's ``ModelRunner``
    is_read_exactly : whether the backend only reads in 8 bit: SGLang's may round queries and weights to that,
        too
    """

    def __init__(self, runner: Any, is_read_exactly: bool = False) -> None:
        self.is_read_exactly = is_read_exactly
        self.req_to_token = runner.req_to_token_pool.req_to_token
        self._pool = runner.token_to_kv_pool

    def buffers(self, layer: Any) -> tuple[Tensor, Tensor]:
        """Return keys and values of a layer, (S, KH, D) and (S, KH, DV).

        Raises
        ------
        UnsupportedError : they are in 8 bit and not ours, or not laid out by slot
        """
        found = [self._pool.get_key_buffer(layer.layer_id), self._pool.get_value_buffer(layer.layer_id)]
        for at, buffer in enumerate(found):
            if buffer.element_size() < 2 and not self.is_read_exactly:
                raise UnsupportedError(f"a KV cache in {str(buffer.dtype).removeprefix('torch.')}")
            if buffer.dim() == 4:  # pages of slots
                found[at] = buffer.flatten(0, 1)
            if found[at].dim() != 3:
                raise UnsupportedError(f"a KV cache of the shape {tuple(buffer.shape)}")
        return found[0], found[1]

    def translate(self, layer: Any) -> Any:
        """Return what brings slots to those of this layer's own pool, or None where they are the same."""
        mapping = getattr(self._pool, "layers_mapping", {})
        translate = getattr(self._pool, "translate_loc_from_full_to_swa", None)
        is_elsewhere = translate is not None and mapping[layer.layer_id][1]
        return translate if is_elsewhere else None


class _Context:
    """What is in the pool before a call, and what the call must write there."""

    def __init__(self, call: Call, pools: Pools) -> None:
        self._call = call
        self._layer = call.layer
        self._pools = pools
        self._translate = pools.translate(call.layer)
        self.values = call.layer.v_head_dim if call.v is None else call.v.shape[2]

    @property
    def _is_as_the_call(self) -> bool:
        """Whether the pool has keys and values as the call has them, not latent ones."""
        keys, values = self._pools.buffers(self._layer)
        return keys.shape[2] == self._layer.qk_head_dim and values.shape[2] == self.values

    def of(self, sequence: int, length: int, most: int | None, heads: slice) -> tuple[Tensor, Tensor]:
        """Return the last keys and values among the first ``length`` of a sequence, (L, heads, D)."""
        if not self._is_as_the_call:
            if length:
                raise UnsupportedError("keys that are not in the pool as the call has them")
            q, empty = self._call.q, (0, heads.stop - heads.start)
            return q.new_empty(*empty, self._layer.qk_head_dim), q.new_empty(*empty, self.values)
        row = self._call.batch.req_pool_indices[sequence : sequence + 1]
        lengths, encoded = torch.tensor([length], device=row.device), self._call.batch.encoder_lens
        before = None if encoded is None else (torch.zeros_like(lengths), encoded[sequence : sequence + 1])
        lists = SlotLists(self._pools.req_to_token, row, lengths, self._translate, skipped=before)
        _, slots = lists.last(most, self._translate is not None)
        return self._read(slots, heads)

    def _read(self, slots: Tensor, heads: slice) -> tuple[Tensor, Tensor]:
        pools = self._pools.buffers(self._layer)
        keys, values = (pool[slots][:, heads] for pool in pools)
        scales = scales_of(self._layer, pools)
        if not scales:
            return keys, values
        of_keys, of_values = factors(**scales)
        return keys.float() * of_keys, values.float() * of_values

    def own(self, rows: Tensor, heads: slice) -> Callable[[], tuple[Tensor, Tensor]] | None:
        """Return what reads these tokens of a call once it has run; None where it leaves them as they are."""
        if self._call.k is None or not scales_of(self._layer, self._pools.buffers(self._layer)):
            return None
        slots = self._slots_of(rows)
        return lambda: self._read(slots, heads)

    def _slots_of(self, rows: Tensor) -> Tensor:
        slots: Tensor = self._call.batch.out_cache_loc[rows]
        return slots if self._translate is None else self._translate(slots)

    def written(self, rows: Tensor, heads: slice) -> Written | None:
        """Return what the call must leave in the pool of these rows of its own."""
        k, v, layer = self._call.k, self._call.v, self._layer
        pools = self._pools.buffers(layer)
        scales = scales_of(layer, pools)
        is_unclear = not scales and (layer.k_scale is not None or layer.v_scale is not None)
        if k is None or v is None or not self._call.is_saved or is_unclear or not self._is_as_the_call:
            return None
        largest = torch.finfo(pools[0].dtype).max
        keys, values = (
            (x[rows][:, heads].double() / factor).clamp(-largest, largest)
            for x, factor in zip((k, v), factors(**scales), strict=True)
        )
        return Written(self._slots_of(rows), heads, keys, values)


def _of_decode(call: Call, context: _Context, options: dict[str, Any], turn: int) -> Sample | None:
    layer, batch, q, k, v = call.layer, call.batch, call.q, call.k, call.v
    lengths, window = batch.seq_lens.tolist(), layer.sliding_window_size
    # Rows that pad a batch write into slot 0, which belongs to nobody.
    real = [row for row, slot in enumerate(batch.out_cache_loc.tolist()[: len(lengths)]) if slot]
    tokens = {row: lengths[row] if window < 0 else min(lengths[row], window + 1) for row in real}
    drawn = _in_turn(real, turn)
    if not drawn:
        return None
    heads = _drawn_heads(layer, max(tokens[row] for row in drawn), context.values, turn)
    parts = []
    for row in drawn:
        # Its own key comes with the call; where it does not, another layer has written it.
        is_given = k is not None and v is not None
        keys, values = context.of(row, lengths[row] - is_given, tokens[row] - is_given, heads)
        if k is not None and v is not None:
            keys = torch.cat((keys, k[row : row + 1, heads].to(keys.dtype)))
            values = torch.cat((values, v[row : row + 1, heads].to(values.dtype)))
        parts.append((keys, values))
    rows = torch.tensor(drawn, device=q.device)
    queries = _queries_of(layer, heads)

    def arguments(parts: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        counts = torch.tensor([len(keys) for keys, _ in parts], device=q.device)
        return {
            "q": q[rows][:, queries],
            "k_buffer": torch.cat([keys for keys, _ in parts]),
            "v_buffer": torch.cat([values for _, values in parts]),
            "kv_indptr": bounds_of(counts),
            "kv_indices": torch.arange(int(counts.sum()), device=q.device),
            "scale": layer.scaling,
            **_of_heads(options, queries),
        }

    other = None
    if window > 0 and any(len(keys) > window for keys, _ in parts):
        other = arguments([(keys[-window:], values[-window:]) for keys, values in parts])
    written, own = context.written(rows, heads), context.own(rows, heads)
    return Sample(OPS["decode_attention"], arguments(parts), rows, queries, written, other, own)


def _of_extend(call: Call, context: _Context, options: dict[str, Any], turn: int) -> Sample | None:
    layer, batch, q, k, v = call.layer, call.batch, call.q, call.k, call.v
    if k is None or v is None:
        raise UnsupportedError("a prompt whose keys another layer has written")
    new, prefixes = batch.extend_seq_lens.tolist(), batch.extend_prefix_lens.tolist()
    drawn = _in_turn([row for row, count in enumerate(new) if count], turn)
    if not drawn:
        return None
    row, window = drawn[0], layer.sliding_window_size
    first, last = bounds_of(batch.extend_seq_lens).tolist()[row : row + 2]
    is_causal = layer.attn_type != AttentionType.ENCODER_ONLY
    if not is_causal:
        options["is_causal"] = False
    if window > -1:
        options["sliding_window"] = window
    # A query that sees later tokens needs them all.
    begin = max(first, last - _TOKENS) if is_causal else first
    prefix = prefixes[row] if window < 0 else min(prefixes[row], window)
    heads = _drawn_heads(layer, prefix + new[row], context.values, turn)
    keys, values = context.of(row, prefixes[row], prefix, heads)
    queries, rows = _queries_of(layer, heads), torch.arange(begin, last, device=q.device)
    keys = torch.cat((keys, k[first:begin, heads].to(keys.dtype)))
    values = torch.cat((values, v[first:begin, heads].to(values.dtype)))
    arguments = {
        "q": q[rows][:, queries],
        "k": k[rows][:, heads],
        "v": v[rows][:, heads],
        "k_buffer": keys,
        "v_buffer": values,
        "qo_indptr": torch.tensor([0, last - begin], device=q.device),
        "kv_indptr": torch.tensor([0, len(keys)], device=q.device),
        "kv_indices": torch.arange(len(keys), device=q.device),
        "scale": layer.scaling,
        **_of_heads(options, queries),
    }
    written = context.written(rows, heads)
    return Sample(OPS["extend_attention"], arguments, rows, queries, written)


def _require_known(call: Call) -> None:
    """Raise ``UnsupportedError`` where no op computes what a call does."""
    mode = call.batch.forward_mode.name
    if mode not in ("DECODE", "EXTEND", "MIXED"):
        raise UnsupportedError(f"calls of the mode {mode}")
    if call.layer.is_cross_attention:
        raise UnsupportedError("cross attention")
    if call.layer.use_irope:
        raise UnsupportedError("attention in chunks (Llama 4)")
    for reason in reasons_of(call.layer):
        raise UnsupportedError(reason)
    for name, value in call.given.items():
        if name not in _UNDERSTOOD and value is not None and value is not False:
            raise UnsupportedError(f"{name}, which the model passes")


def _by_head(call: Call) -> Call:
    """Return a call with a head's elements in the last axis; of latent attention with its rotated part."""
    layer, q, k, v = call.layer, call.q, call.k, call.v
    heads, kv_heads, size = layer.tp_q_head_num, layer.tp_k_head_num, layer.qk_head_dim
    q_rope, k_rope = call.given.get("q_rope"), call.given.get("k_rope")
    if q_rope is not None:
        q = torch.cat((q.reshape(len(q_rope), heads, -1), q_rope.reshape(len(q_rope), heads, -1)), -1)
    if k is not None and k_rope is not None:
        k = torch.cat((k.reshape(len(k_rope), kv_heads, -1), k_rope.reshape(len(k_rope), kv_heads, -1)), -1)
    return replace(
        call,
        q=q.reshape(-1, heads, size),
        k=None if k is None else k.reshape(-1, kv_heads, size),
        v=None if v is None else v.reshape(-1, kv_heads, layer.v_head_dim),
    )


def _in_turn(rows: list[int], turn: int) -> list[int]:
    """Return some rows, others in each turn."""
    first = turn % len(rows) if rows else 0
    return (rows[first:] + rows[:first])[:_SEQUENCES]


def _drawn_heads(layer: Any, tokens: int, values: int, turn: int) -> slice:
    """Return as many heads of keys as may be looked at of so many tokens.

    Raises
    ------
    UnsupportedError : of so many tokens not even one head may be looked at
    """
    heads = layer.tp_k_head_num
    count = min(heads, _ELEMENTS // max(1, tokens * (layer.qk_head_dim + values)))
    if not count:
        raise UnsupportedError(f"a context of {tokens} tokens: its keys are too many to look at")
    first = turn % (heads - count + 1)
    return slice(first, first + count)


def _queries_of(layer: Any, heads: slice) -> slice:
    """Return the query heads that share these heads of keys."""
    group = layer.tp_q_head_num // layer.tp_k_head_num
    return slice(heads.start * group, heads.stop * group)


def _of_heads(options: dict[str, Any], queries: slice) -> dict[str, Any]:
    sinks = options.get("sinks")
    return options if sinks is None else {**options, "sinks": sinks[queries].clone()}

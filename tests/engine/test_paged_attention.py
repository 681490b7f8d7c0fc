"""The attention backend ``sglang_fl`` where its lists are not those of a plain text: a formula in float64.

That is a text in chunks, and an encoder, whose tokens lie before those of the text in a request's row. And
where a token counts those before it: temperatures by position.
"""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from torch import Tensor

from sglang_fl.sglang_adapter.attention.slots import cut_at_chunks
from sglang_fl.sglang_adapter.releases import PLAIN_PREFILL
from tests.engine.layer_pool import Pool
from tests.engine.release import RELEASE, present

pytestmark = present(RELEASE in PLAIN_PREFILL, "attention of ours")

HEADS, KV_HEADS, SIZE, SLOTS, PLACES = 4, 2, 16, 600, 60
CHUNK = 8
TOLERANCE = 1e-5

#: Of each sequence the tokens in the pool and the new ones: chunks that end within, before and behind them.
TEXTS = [(0, 20), (5, 9), (13, 3), (8, 8), (7, 1), (16, 0), (3, 0), (0, 1), (30, 17)]
DECODED = [(length, 1) for length in (0, 1, 6, 7, 8, 9, 15, 16, 40)]


class Call:
    """A layer's call for a batch, and what a formula makes of it.

    Parameters
    ----------
    lengths : of each sequence the tokens in the pool, and the new ones
    encoded : of each the tokens of the encoder; None: the model has none
    chunk : of the runner
    layer : what the layer is beside the usual
    is_decode : whether it is a decode step
    """

    def __init__(
        self,
        lengths: list[tuple[int, int]],
        encoded: list[int] | None = None,
        chunk: int | None = None,
        is_decode: bool = False,
        **layer: Any,
    ) -> None:
        from sglang_fl.sglang_adapter.attention.backend import PagedAttention

        self.draw = torch.Generator().manual_seed(0)
        self.lengths, self.encoded = lengths, encoded or [0] * len(lengths)
        self.layer = RadixAttention(HEADS, SIZE, SIZE**-0.5, KV_HEADS, layer_id=0, **layer)
        self.pool = Pool(self.draw, SLOTS, KV_HEADS, SIZE)
        drawn = torch.randperm(SLOTS - 1, generator=self.draw)[: len(lengths) * PLACES].add(1)
        self.table = drawn.view(-1, PLACES).to(torch.int32)
        before, new = (torch.tensor(part) for part in zip(*lengths, strict=True))
        self.batch = SimpleNamespace(
            forward_mode=ForwardMode.DECODE if is_decode else ForwardMode.EXTEND,
            req_pool_indices=torch.arange(len(lengths)),
            seq_lens=before + new,
            extend_seq_lens=None if is_decode else new,
            extend_prefix_lens=None if is_decode else before,
            out_cache_loc=self._slots(
                [(n, b, b + m) for n, (b, m) in zip(self.encoded, lengths, strict=True)]
            ),
            out_cache_loc_is_physical=False,
            encoder_lens=None if encoded is None else torch.tensor(encoded),
            encoder_out_cache_loc=None,
        )
        self.backend = PagedAttention(
            SimpleNamespace(
                model=torch.nn.ModuleList([self.layer]),
                kv_cache_dtype=torch.float32,
                token_to_kv_pool=self.pool,
                req_to_token_pool=SimpleNamespace(req_to_token=self.table),
                attention_chunk_size=chunk,
            )
        )

    def _slots(self, parts: list[tuple[int, int, int]]) -> Tensor:
        """Return the slots of some tokens of each sequence, behind those of its encoder."""
        return torch.cat([self.table[row, n + a : n + b] for row, (n, a, b) in enumerate(parts)]).long()

    def run(self, new_sources: list[int] | None = None, has_keys: bool = True) -> tuple[Tensor, Tensor]:
        """Return queries and results; ``new_sources``: sequences whose encoder's tokens the call brings."""
        tokens = sum(new for _, new in self.lengths)
        q = torch.randn(tokens, HEADS * SIZE, generator=self.draw)
        count = tokens
        if new_sources is not None:
            self.batch.encoder_out_cache_loc = self._slots(
                [(0, 0, n if row in new_sources else 0) for row, n in enumerate(self.encoded)]
            )
            count = len(self.batch.encoder_out_cache_loc)
        k, v = (torch.randn(count, KV_HEADS, SIZE, generator=self.draw) for _ in range(2))
        self.backend.init_forward_metadata(self.batch)
        given = (k, v) if has_keys else (None, None)
        return q.view(tokens, HEADS, SIZE), self.backend.forward(q, *given, self.layer, self.batch).view(
            tokens, HEADS, SIZE
        )

    def formula(self, q: Tensor, chunk: int | None = None) -> Tensor:
        """Return what each new token sees in the pool, one after the other, in float64."""
        out, token = torch.zeros(q.shape, dtype=torch.float64), 0
        for row, (before, new) in enumerate(self.lengths):
            for place in range(before, before + new):
                first = place - place % chunk if chunk else 0
                seen = slice(self.encoded[row] + first, self.encoded[row] + place + 1)
                if self.layer.is_cross_attention:
                    seen = slice(0, self.encoded[row])
                slots = self.table[row, seen].long()
                if len(slots):
                    out[token] = self._one(q[token], self.pool.keys[slots], self.pool.values[slots], place)
                token += 1
        return out

    def _one(self, q: Tensor, keys: Tensor, values: Tensor, place: int) -> Tensor:
        keys, values = (x.repeat_interleave(HEADS // KV_HEADS, 1).double() for x in (keys, values))
        scores = torch.einsum("hd,nhd->hn", q.double(), keys) * SIZE**-0.5
        cap, length = self.layer.logit_cap, self.layer.xai_temperature_len
        if cap > 0:
            scores = cap * torch.tanh(scores / cap)
        if place > length > 0:
            scores *= math.log2(place) / math.log2(length)
        return torch.einsum("hn,nhd->hd", scores.softmax(-1), values)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max())


@pytest.mark.parametrize(("texts", "is_decode"), [(TEXTS, False), (DECODED, True)], ids=["extend", "decode"])
def test_a_token_sees_the_tokens_of_its_chunk_alone(texts: list[tuple[int, int]], is_decode: bool):
    call = Call(texts, chunk=CHUNK, is_decode=is_decode, use_irope=True)
    q, found = call.run()
    assert error(found, call.formula(q, CHUNK)) < TOLERANCE
    assert error(found, call.formula(q, CHUNK + 1)) > 0.1
    assert error(found, call.formula(q)) > 0.1


def test_a_layer_that_is_not_in_chunks_sees_all():
    call = Call(TEXTS, chunk=CHUNK, use_irope=False)
    q, found = call.run()
    assert error(found, call.formula(q)) < TOLERANCE


@pytest.mark.parametrize("cap", [0.0, 0.8], ids=["plain", "capped"])
@pytest.mark.parametrize(("texts", "is_decode"), [(TEXTS, False), (DECODED, True)], ids=["extend", "decode"])
def test_a_temperature_is_that_of_the_place_in_the_text(
    texts: list[tuple[int, int]], is_decode: bool, cap: float
):
    """Grok's: behind the cap, and for tokens past some place alone."""
    call = Call(texts, is_decode=is_decode, logit_cap=cap)
    call.layer.xai_temperature_len = 8
    q, found = call.run()
    assert error(found, call.formula(q)) < TOLERANCE
    for other in (-1, 9):
        call.layer.xai_temperature_len = other
        assert error(found, call.formula(q)) > 0.01


def test_pieces_are_sequences_of_one_chunk_each():
    prefixes, new = (torch.tensor(part) for part in zip(*TEXTS, strict=True))
    bounds, of_prefixes = cut_at_chunks(prefixes, new, CHUNK)
    pieces = list(zip(of_prefixes.diff().tolist(), bounds.diff().tolist(), strict=True))
    assert pieces == [
        *((0, 8), (0, 8), (0, 4)),  # 0 and 20
        *((5, 3), (0, 6)),  # 5 and 9
        (5, 3),  # 13 and 3
        (0, 8),  # 8 and 8
        (7, 1),
        (3, 0),  # of 16 and 0 there is none
        (0, 1),
        *((6, 2), (0, 8), (0, 7)),  # 30 and 17
    ]


ENCODED = [5, 0, 9, 40]
OF_ENCODED = {
    "extend": [(0, 4), (0, 7), (3, 2), (0, 1)],
    "decode": [(4, 1), (7, 1), (0, 1), (13, 1)],
}


@pytest.mark.parametrize("mode", OF_ENCODED)
def test_a_text_lies_behind_the_tokens_of_its_encoder(mode: str):
    call = Call(OF_ENCODED[mode], ENCODED, is_decode=mode == "decode")
    q, found = call.run()
    assert error(found, call.formula(q)) < TOLERANCE


def test_a_prompt_sees_all_tokens_of_its_encoder_new_or_not():
    call = Call(OF_ENCODED["extend"], ENCODED, is_cross_attention=True)
    kept = call.pool.keys.clone()
    q, found = call.run(new_sources=[0, 3])
    assert error(found, call.formula(q)) < TOLERANCE
    written = (call.pool.keys != kept).flatten(1).any(1).nonzero().flatten()
    assert written.tolist() == sorted(call.batch.encoder_out_cache_loc.tolist())
    assert len(written) == ENCODED[0] + ENCODED[3]
    assert not found[4:11].any()  # a request without anything to encode


def test_a_decoded_token_sees_them_where_they_were_written():
    call = Call(OF_ENCODED["decode"], ENCODED, is_decode=True, is_cross_attention=True)
    q, found = call.run(has_keys=False)
    assert error(found, call.formula(q)) < TOLERANCE
    assert not found[1].any()


def test_rows_that_pad_a_decode_step_change_no_other_row():
    call = Call([(length, 1) for length in (6, 16)], is_decode=True)
    batch, fill = call.batch, call.backend.get_cuda_graph_seq_len_fill_value()
    batch.req_pool_indices = torch.cat([batch.req_pool_indices, torch.tensor([0, 0])])  # as SGLang pads them
    batch.seq_lens = torch.cat([batch.seq_lens, torch.tensor([fill, fill])])
    batch.out_cache_loc = torch.cat([batch.out_cache_loc, torch.tensor([0, 0])])
    call.lengths = [*call.lengths, (0, 1), (0, 1)]
    call.encoded = [*call.encoded, 0, 0]
    call.table = call.table[[0, 1, 0, 0]]
    q, found = call.run()
    assert error(found[:2], call.formula(q)[:2]) < TOLERANCE
    assert found[2:].isfinite().all()

"""Calls of SGLang's attention layer: the log tells which backend ran them, and wrong ones are found."""

import copy
import json
import math
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from torch import Tensor

from sglang_fl.dispatch.op_check import OpCheck, Violation
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.sglang_adapter.attention import sample
from sglang_fl.sglang_adapter.attention.observed import check_calls, tell_of_backend
from sglang_fl.sglang_adapter.releases import PLAIN_PREFILL
from tests.engine.fake_vendor import install_module
from tests.engine.layer_pool import Pool
from tests.engine.planted import FLAGS
from tests.engine.release import RELEASE, present
from tests.programs import finish, server_for

pytestmark = pytest.mark.timeout(400)

HEADS, KV_HEADS, SIZE, SLOTS = 4, 2, 16, 200


class Attention:
    """A layer, what it is called with, and a backend that computes one query after the other.

    Parameters
    ----------
    mode : ``DECODE`` or ``EXTEND``
    lengths : of each sequence the tokens before the call, and the new ones
    mistake : what the backend does wrong
    encoded : how many tokens of an encoder lie before those of each sequence
    layer : attributes of the layer
    """

    def __init__(
        self, mode: str, lengths: list[tuple[int, int]], mistake: str = "", encoded: int = 0, **layer: Any
    ) -> None:
        self.draw = torch.Generator().manual_seed(0)
        self.layer = RadixAttention(HEADS, SIZE, SIZE**-0.5, KV_HEADS, layer_id=0)
        for name, value in layer.items():
            assert hasattr(self.layer, name)
            setattr(self.layer, name, value)
        self.mistake = mistake
        self.lengths, self.encoded = lengths, encoded
        self.pool = Pool(self.draw, SLOTS, KV_HEADS, SIZE)
        table = torch.randperm(SLOTS - 1, generator=self.draw)[: 3 * 60].add(1).view(3, 60).to(torch.int32)
        prefixes, new = (torch.tensor(part) for part in zip(*lengths, strict=True))
        ends = zip(prefixes.tolist(), (prefixes + new).tolist(), strict=True)
        self.batch = SimpleNamespace(
            forward_mode=ForwardMode[mode],
            req_pool_indices=torch.arange(len(lengths)),
            seq_lens=prefixes + new,
            extend_seq_lens=new,
            extend_prefix_lens=prefixes,
            out_cache_loc=torch.cat([table[row, encoded:][a:b] for row, (a, b) in enumerate(ends)]).long(),
            encoder_lens=torch.full((len(lengths),), encoded) if encoded else None,
        )
        self.runner = SimpleNamespace(
            model=torch.nn.ModuleList([self.layer]),
            token_to_kv_pool=self.pool,
            req_to_token_pool=SimpleNamespace(req_to_token=table),
            attn_backend=SimpleNamespace(prefill_attention_backend_str="a", decode_attention_backend_str="b"),
        )
        self.layer.forward = self.backend

    def call(self, **given: Any) -> Any:
        tokens = sum(new for _, new in self.lengths)
        q = torch.randn(tokens, HEADS * SIZE, generator=self.draw)
        k, v = (torch.randn(tokens, KV_HEADS * SIZE, generator=self.draw) for _ in range(2))
        return self.layer(q, k, v, self.batch, **given)

    def backend(self, q: Tensor, k: Tensor, v: Tensor, batch: Any, save_kv_cache: bool = True, **given: Any):
        q, k, v = (x.view(len(x), -1, SIZE) for x in (q, k, v))
        before = self.pool.keys[batch.out_cache_loc]
        self.pool.keys[batch.out_cache_loc] = k
        self.pool.values[batch.out_cache_loc] = v
        out, token = torch.zeros_like(q), 0
        table, layer = self.runner.req_to_token_pool.req_to_token, self.layer
        for row, (prefix, new) in enumerate(self.lengths):
            for place in range(prefix, prefix + new):
                slots = table[row, self.encoded :][: prefix + new].long()
                seen = torch.arange(prefix + new)
                last = prefix + new if layer.attn_type == AttentionType.ENCODER_ONLY else place + 1
                last += self.mistake == "one key more" and place + 1 < prefix + new
                first = self.mistake == "one key fewer"
                window = layer.sliding_window_size
                if window > -1:
                    less = {"triton's window": 1, "window off by two": 2}.get(self.mistake, 0)
                    first = max(0, place - window + less)
                if self.mistake == "wrong page":
                    slots = torch.cat((slots[:-1], slots[:1]))[seen]
                slots = slots[(seen >= first) & (seen < last)]
                out[token] = self._one(q[token], self.pool.keys[slots], self.pool.values[slots], place, given)
                token += 1
        if self.mistake == "not written":
            self.pool.keys[batch.out_cache_loc] = before
        return out.flatten(1)

    def _one(self, q: Tensor, keys: Tensor, values: Tensor, place: int, given: dict[str, Any]) -> Tensor:
        keys, values = (x.repeat_interleave(HEADS // KV_HEADS, 1).double() for x in (keys, values))
        scale = 1.0 if self.mistake == "no scale" else SIZE**-0.5
        scores = torch.einsum("hd,nhd->hn", q.double(), keys) * scale
        if self.layer.logit_cap and self.mistake != "no cap":
            scores = self.layer.logit_cap * torch.tanh(scores / self.layer.logit_cap)
        if place > self.layer.xai_temperature_len > 0 and self.mistake != "no temperature":
            scores *= math.log2(place) / math.log2(self.layer.xai_temperature_len)
        if given.get("sinks") is not None and self.mistake != "no sinks":
            scores = torch.cat((scores, given["sinks"].double()[:, None]), 1)
            values = torch.cat((values, torch.zeros_like(values[:1])))
        return torch.einsum("hn,nhd->hd", scores.softmax(-1), values).to(q.dtype)


DECODE, EXTEND = ("DECODE", [(7, 1), (20, 1), (0, 1)]), ("EXTEND", [(7, 5), (20, 1), (0, 30)])
ENCODER = {"attn_type": AttentionType.ENCODER_ONLY}


def checked(attention: Attention, calls: int = 1, **given: Any) -> tuple[list[Violation], OpCheck]:
    found: list[Violation] = []
    check = OpCheck(found.append)
    check_calls(attention.runner, check, lambda layer, backend: f"model.attn by {backend}")
    for _ in range(calls):
        attention.call(**given)
    return found, check


RIGHT = [
    ("plain", {}, {}),
    ("no cap", {"logit_cap": None}, {}),
    ("window", {"sliding_window_size": 4}, {}),
    ("cap", {"logit_cap": 0.5}, {}),
    ("temperature", {"xai_temperature_len": 4}, {}),
    ("sinks", {}, {"sinks": torch.linspace(-1, 2, HEADS)}),
]


@pytest.mark.parametrize("mode", [DECODE, EXTEND], ids=["decode", "extend"])
@pytest.mark.parametrize(("layer", "given"), [case[1:] for case in RIGHT], ids=[case[0] for case in RIGHT])
def test_a_right_backend_is_right_whichever_sequences_are_drawn(mode, layer, given):
    found, check = checked(Attention(*mode, **layer), calls=4, **given)
    assert not found, str(found[0])
    assert not check.unchecked


@pytest.mark.parametrize("mode", [DECODE, EXTEND], ids=["decode", "extend"])
def test_a_text_behind_the_tokens_of_an_encoder_is_right(mode):
    found, check = checked(Attention(*mode, encoded=5), calls=4)
    assert not found, str(found[0])
    assert not check.unchecked


def test_layers_that_are_not_causal_are_right():
    found, check = checked(Attention("EXTEND", [(0, 5), (0, 40)], **ENCODER), calls=2)
    assert not found, str(found[0])
    assert not check.unchecked


def test_triton_may_see_one_key_fewer_in_a_decoded_window():
    found, check = checked(Attention(*DECODE, "triton's window", sliding_window_size=4))
    assert not found, str(found[0])
    assert not check.unchecked


WRONG = [
    (DECODE, "one key fewer", {}, {}),
    (DECODE, "no scale", {}, {}),
    (DECODE, "wrong page", {}, {}),
    (DECODE, "window off by two", {"sliding_window_size": 4}, {}),
    (DECODE, "no cap", {"logit_cap": 0.5}, {}),
    (DECODE, "no temperature", {"xai_temperature_len": 4}, {}),
    (DECODE, "no sinks", {}, {"sinks": torch.ones(HEADS)}),
    (EXTEND, "one key more", {}, {}),
    (EXTEND, "one key fewer", {}, {}),
    (EXTEND, "no scale", {}, {}),
    (EXTEND, "wrong page", {}, {}),
    (EXTEND, "triton's window", {"sliding_window_size": 4}, {}),
    (EXTEND, "no cap", {"logit_cap": 0.5}, {}),
    (EXTEND, "no temperature", {"xai_temperature_len": 4}, {}),
    (EXTEND, "no sinks", {}, {"sinks": torch.ones(HEADS)}),
]


@pytest.mark.parametrize(("mode", "mistake", "layer", "given"), WRONG)
def test_a_wrong_backend_is_found(mode, mistake, layer, given):
    found, _ = checked(Attention(*mode, mistake, **layer), **given)
    assert found
    expected = "decode_attention" if mode is DECODE else "extend_attention"
    name = "b" if mode is DECODE else "a"
    assert str(found[0]).startswith(f"{expected} in model.attn by {name}: result 0: ")


@pytest.mark.parametrize("mode", [DECODE, EXTEND], ids=["decode", "extend"])
def test_keys_that_are_not_written_are_found(mode):
    found, _ = checked(Attention(*mode, "not written"))
    assert [violation.what for violation in found] == ["the pool has other keys than those of the call"]


def test_nothing_of_the_call_is_kept_or_changed():
    attention, plain = Attention(*EXTEND), Attention(*EXTEND)
    _, check = checked(attention)
    plain.call()
    assert torch.equal(attention.pool.keys, plain.pool.keys)
    assert torch.equal(attention.call(), plain.call())
    assert not check.unchecked


def test_a_long_prompt_and_a_long_context_are_looked_at_in_part(monkeypatch):
    monkeypatch.setattr(sample, "_ELEMENTS", 30 * 2 * SIZE)  # one head of 30 tokens
    for mode in (DECODE, EXTEND):
        attention = Attention(*mode)
        found, check = checked(attention, calls=4)
        assert not found
        assert not check.unchecked
    monkeypatch.setattr(sample, "_ELEMENTS", 30 * 2 * SIZE - 1)
    _, check = checked(Attention("EXTEND", [(0, 30)]))
    assert check.unchecked == {"RadixAttention": "a context of 30 tokens: its keys are too many to look at"}


@pytest.mark.parametrize(
    ("mode", "layer", "given", "reason"),
    [
        ("TARGET_VERIFY", {}, {}, "calls of the mode TARGET_VERIFY"),
        ("DECODE", {"is_cross_attention": True}, {}, "cross attention"),
        ("DECODE", {"use_irope": True}, {}, "attention in chunks (Llama 4)"),
        ("DECODE", {}, {"rel_bias": torch.ones(1)}, "rel_bias, which the model passes"),
    ],
)
def test_what_no_op_computes_is_said_once_and_served(mode, layer, given, reason):
    attention = Attention(mode, DECODE[1], "no scale", **layer)
    found, check = checked(attention, calls=2, **given)
    assert not found
    assert check.unchecked == {"RadixAttention": reason}


def test_when_the_check_is_over_the_layer_is_what_it_was():
    attention = Attention(*DECODE)
    own = vars(attention.layer)["forward"]
    placed = check_calls(attention.runner, OpCheck(print), print)
    assert vars(attention.layer)["forward"] is placed[0]
    assert check_calls(attention.runner, OpCheck(print), print) == []
    for stand_in in placed:
        stand_in.leave()
    assert vars(attention.layer)["forward"] == own
    del attention.layer.forward
    tell_of_backend(attention.runner, DispatchLog(None))
    assert "forward" in vars(attention.layer)
    for copied in (copy.deepcopy(attention.layer), pickle.loads(pickle.dumps(attention.layer))):
        assert copied.forward.__self__ is copied
        assert copied.forward.__func__ is RadixAttention.forward


def test_each_backend_is_told_of_once_it_has_run(tmp_path: Path):
    log = tmp_path / "log"
    attention = Attention(*EXTEND)
    tell_of_backend(attention.runner, DispatchLog(log))
    attention.call()
    attention.call()
    assert log.read_text().splitlines() == ["[OOT-DISPATCH] RadixAttention → sglang(a)"]
    attention.batch.forward_mode, attention.lengths = ForwardMode.DECODE, DECODE[1]
    attention.batch.seq_lens = torch.tensor([8, 21, 1])
    attention.batch.out_cache_loc = attention.batch.out_cache_loc[:3]
    attention.call()
    assert log.read_text().splitlines()[1:] == ["[OOT-DISPATCH] RadixAttention → sglang(b)"]
    assert vars(attention.layer)["forward"] == attention.backend


def test_a_layer_is_checked_whose_backend_is_told_as_well(tmp_path: Path):
    """As a server does it: both stand in for the first layer, one around the other."""
    attention, found = Attention(*EXTEND, "no scale"), []
    check_calls(attention.runner, OpCheck(found.append), lambda layer, backend: backend)
    tell_of_backend(attention.runner, DispatchLog(tmp_path / "log"))
    attention.call()
    assert found
    assert (tmp_path / "log").read_text() == "[OOT-DISPATCH] RadixAttention → sglang(a)\n"


def test_torch_compile_sees_through_what_stands_in():
    class Layer(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, forward_batch: Any, save_kv_cache: bool) -> Tensor:
            return q + k + v

    from sglang_fl.sglang_adapter.attention.observed import _Checked, _Told

    layer = Layer()
    _Checked(layer, None, OpCheck(print), print).put()
    _Told(layer, None, DispatchLog(None)).put()
    ones = torch.ones(2)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert torch.equal(compiled(ones, ones, ones, 3, True), 3 * ones)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    source = (Path(__file__).parent / "wrong_attention.py").read_text()
    entry = "wrong_attention = wrong_attention:register"
    folder = tmp_path_factory.mktemp("site")
    return install_module(folder, "wrong_attention", source, "sglang.srt.plugins", entry)


def test_a_server_tells_of_wrong_attention_by_layer(run_offline, tmp_path: Path, site: Path):
    log = tmp_path / "dispatch.log"
    settings = {
        "SGLANG_FL_DISPATCH_LOG": str(log),
        "SGLANG_FL_VERIFY": "attention",
        "SGLANG_FL_VERIFY_RATE": "1",
    }
    run = run_offline(settings)
    assert run.code == 0, run.output[-3000:]
    assert "checking one call in 1 of attention" in run.output
    assert " units of " not in run.output
    assert "cannot be checked" not in run.output
    assert "[OOT-DISPATCH] RadixAttention → sglang(torch_native)" in log.read_text().splitlines()
    log.write_text("")
    settings |= {"PYTHONPATH": str(site)}
    run = run_offline(
        settings, prefill_attention_backend="torch_native", decode_attention_backend="wrong_decode"
    )
    assert run.code == 0, run.output[-3000:]
    (told,) = [line for line in run.output.splitlines() if " units of " in line]
    name = "decode_attention in model.layers.1.self_attn.attn by the attention backend wrong_decode"
    assert f"{name}: result 0: " in told
    lines = [line for line in log.read_text().splitlines() if "RadixAttention" in line]
    assert lines == [
        f"[OOT-DISPATCH] RadixAttention → sglang({name})" for name in ("torch_native", "wrong_decode")
    ]


@present(RELEASE in PLAIN_PREFILL, "prefill without Triton beside an attention backend of another name")
def test_bisect_tells_of_wrong_attention_that_is_sglangs_own(tiny_model, environment_of, tmp_path, site):
    folder = tmp_path / "reports"
    variables = environment_of({"PYTHONPATH": str(site)})
    command = [sys.executable, "-m", "sglang_fl", "bisect", "--json", "--model", str(tiny_model)]
    command += ["--folder", str(folder), *FLAGS, "--device", "cpu", "--attention-backend", "wrong_extend"]
    done = finish(command, variables, 300, server_for(variables))
    assert done.code == 1, done.output[-3000:]
    (verdict,) = [json.loads(path.read_text()) for path in folder.glob("*/verdict.json")]
    summary = (
        "attention is wrong by itself, in SGLang too: sglang(wrong_extend); no op makes the model differ"
    )
    assert verdict["summary"].startswith(summary)
    (culprit,) = verdict["culprits"]
    assert culprit["name"] == "RadixAttention"
    assert culprit["where"] == "model.layers.0.self_attn.attn"
    assert culprit["what"].startswith("result 0: ")
    script = next(folder.glob("*/reproduce-0.py"))
    said = finish([sys.executable, str(script)], environment_of({}), 60)
    assert "extend_attention in model.layers.0.self_attn.attn: result 0: " in said.output

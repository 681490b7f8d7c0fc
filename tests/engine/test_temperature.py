"""A temperature by position in an engine: Gemma-2 with its caps, in whose global layer it is switched on.

SGLang's Grok launches Triton kernels, and transformers has no Grok. So transformers' Gemma-2 is given Grok's
formula, and judges.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.gemma2 import modeling_gemma2

from sglang_fl.sglang_adapter.releases import PLAIN_PREFILL
from tests.engine.fake_vendor import install_module
from tests.engine.judge import LIMIT, Bench, bench_in, compare
from tests.engine.models import BY_NAME, make_model
from tests.engine.questions import draw_prompts
from tests.engine.release import RELEASE, present
from tests.engine.test_eight_bit_cache import Served, serve
from tests.engine.warm_layers import LENGTH

pytestmark = [pytest.mark.timeout(400), present(RELEASE in PLAIN_PREFILL, "attention of ours")]

FAMILY = BY_NAME["Gemma-2-capped"]


@pytest.fixture
def bench(tmp_path: Path, environment_of: Any) -> Bench:
    made = bench_in(tmp_path, environment_of, SGLANG_FL_VERIFY="attention", SGLANG_FL_VERIFY_RATE="1")
    source = (Path(__file__).parent / "warm_layers.py").read_text()
    entry = "warm_layers = warm_layers:register"
    install_module(tmp_path / "vendor", "warm_layers", source, "sglang.srt.plugins", entry)
    return made


def attend(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, softcap: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Do what transformers does, and multiply scores of a global layer behind their cap."""
    k, v = (modeling_gemma2.repeat_kv(x, module.num_key_value_groups) for x in (k, v))
    scores = softcap * torch.tanh(q @ k.mT * scaling / softcap)
    if module.sliding_window is None:
        places = torch.arange(q.shape[2]).clamp_min(1)
        scores *= (places.log() / math.log(LENGTH)).clamp_min(1.0).unsqueeze(1)
    weights = (scores + mask).softmax(-1)
    return (weights @ v).transpose(1, 2).contiguous(), weights


def test_an_engine_heeds_a_temperature_in_prompts_decode_and_behind_a_prefix(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as warm:
        warm.setattr(modeling_gemma2, "eager_attention_forward", attend)
        served: Served = serve(bench, tmp_path, [], FAMILY)
    assert (served.wrong, served.unchecked) == ([], [])
    for found in (served.prompts, served.followers):
        assert max(found.prefill, found.decode) < LIMIT
        assert not found.tokens
    assert min(row["cached_tokens"] for row in served.answers["followers"]) >= 30
    cold = make_model(FAMILY, tmp_path / "cold")
    prompts, _ = draw_prompts(FAMILY, tmp_path / "cold")
    without = compare(cold, prompts, served.answers["prompts"])
    assert min(without.prefill, without.decode) > LIMIT

"""SGLang's HTTP server on the simulated chip of this session: greedy tokens are those of transformers."""

from pathlib import Path

import pytest
import torch
import transformers

import demo.server
from demo.server import serve
from tests.programs import start_preloaded

pytestmark = pytest.mark.timeout(300)

LAUNCH = ("--disable-piecewise-cuda-graph", "--max-total-tokens", "2048", "--dtype", "float32")
PROMPTS = [[5, 6, 7, 8, 9, 10], list(range(40, 140))]
NEW_TOKENS = 12


def greedy(model: Path, prompt: list[int]) -> list[int]:
    run = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokens = run.generate(
        torch.tensor([prompt]), do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS
    )
    return tokens[0, len(prompt) :].tolist()


def test_greedy_tokens_are_those_of_transformers(
    vendor, simulating, tiny_model: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(demo.server, "start", start_preloaded)
    dispatch_log = tmp_path / "dispatch.log"
    settings = {"SGLANG_FL_STRICT": "1", "SGLANG_FL_DISPATCH_LOG": str(dispatch_log)}
    with serve(
        tiny_model,
        tmp_path / "server.log",
        arguments=LAUNCH,
        environment=simulating(vendor.name, settings),
        timeout=250,
    ) as server:
        request = {
            "input_ids": PROMPTS,
            "sampling_params": {"temperature": 0, "max_new_tokens": NEW_TOKENS, "ignore_eos": True},
        }
        answers = server.post("/generate", request)
    assert [answer["output_ids"] for answer in answers] == [greedy(tiny_model, prompt) for prompt in PROMPTS]
    runs = dict.fromkeys(("RMSNorm", "RotaryEmbedding", "SiluAndMul"), f"vendor(vendor.{vendor})")
    runs["RadixAttention"] = "sglang(torch_native)"
    lines = {f"[OOT-DISPATCH] {name} → {ran}" for name, ran in runs.items()}
    assert set(dispatch_log.read_text().splitlines()) == lines

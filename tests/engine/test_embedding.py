"""An encoder on the attention of ours, whose tokens see those behind them: transformers' embeddings."""

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers

from sglang_fl.sglang_adapter.releases import PLAIN_PREFILL
from sglang_fl.sglang_adapter.seams import installed_version
from tests.engine.words import VOCABULARY, make_tokenizer
from tests.programs import finish, server_for

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(installed_version() not in PLAIN_PREFILL, reason="no place for the backend"),
]

EMBED = """
import json, sys
import sglang as sgl

if __name__ == "__main__":
    engine = sgl.Engine(
        model_path=sys.argv[1], is_embedding=True, attention_backend="sglang_fl", dtype="float32",
        max_total_tokens=2048, log_level="info", random_seed=1,
    )
    rows = engine.encode(json.loads(sys.argv[2]))
    engine.shutdown()
    print("RESULT " + json.dumps([row["embedding"] for row in rows]))
"""


def test_an_encoder_embeds_as_transformers_does(environment_of, tmp_path: Path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        max_position_embeddings=512,
        position_embedding_type="absolute",  # SGLang reads it, as published checkpoints have it
    )
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.dim() > 1 else parameter.add_(0.1)
    model.save_pretrained(tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(40, VOCABULARY, (n,), generator=generator).tolist() for n in (2, 40, 300)]
    texts = [tokenizer.decode(tokens) for tokens in drawn]
    log, script = tmp_path / "dispatch.log", tmp_path / "embed.py"
    script.write_text(EMBED)
    environment = environment_of({"SGLANG_FL_DISPATCH_LOG": str(log)})
    command = [sys.executable, str(script), str(tmp_path / "model"), json.dumps(texts)]
    run = finish(command, environment, 240, server_for(environment))
    assert run.code == 0, run.output[-5000:]
    assert log.read_text().splitlines() == [
        f"[OOT-DISPATCH] AttentionKernels.{method} → reference(reference)" for method in ("write", "extend")
    ]
    for text, found in zip(texts, run.result, strict=True):
        with torch.no_grad():
            first = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0, 0]
        torch.testing.assert_close(torch.tensor(found), first / first.norm(), atol=1e-5, rtol=0)

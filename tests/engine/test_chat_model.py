"""A real checkpoint as a judge: SmolLM2-135M-Instruct, whose numbers mean something, beside transformers."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from tests.engine.fake_vendor import install_vendor
from tests.programs import finish, server_for

pytestmark = pytest.mark.timeout(1000)

#: A page of text that does not change.
PAGE = (Path(__file__).parents[2] / "LICENSE").read_text()[:2000]
FAULTY = Path(__file__).parent / "faulty_vendor.py"
LAYERS = ("RMSNorm", "RotaryEmbedding", "SiluAndMul")
#: Log-probabilities in nats. 30 layers in float32 round by less; a result that is wrong by 5 % costs 0.1.
LIMIT = 1e-3

_SCORE = """
import json, sys

def main():
    import sglang as sgl
    engine = sgl.Engine(model_path=sys.argv[1], skip_tokenizer_init=True, dtype="float32",
                        max_total_tokens=2048, log_level="warning", disable_radix_cache=True)
    answer = engine.generate(input_ids=json.loads(sys.argv[2]), return_logprob=True, logprob_start_len=0,
                             sampling_params={"temperature": 0, "max_new_tokens": 1})
    engine.shutdown()
    print("RESULT " + json.dumps([p for p, *_ in answer["meta_info"]["input_token_logprobs"][1:]]))

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def page(chat_model: Path) -> tuple[list[int], torch.Tensor]:
    """The tokens of the page, and the log-probability of each by transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(chat_model)(PAGE)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32).eval()
    with torch.no_grad():
        every = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    return tokens, every[:-1].gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings under which a vendor package of right kernels runs, with a folder to plant faults by."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "planted").mkdir()
    site = install_vendor(folder / "site", "faulty", FAULTY.read_text())
    return {"PYTHONPATH": str(site), "FAULTS_FOLDER": str(folder / "planted")}


@pytest.fixture(scope="module")
def score(chat_model: Path, page, environment_of, tmp_path_factory) -> Callable[..., torch.Tensor]:
    """Return the log-probabilities of the page by SGLang's engine under given settings."""
    script = tmp_path_factory.mktemp("score") / "score.py"
    script.write_text(_SCORE)

    def score(settings: Mapping[str, str]) -> torch.Tensor:
        command = [sys.executable, str(script), str(chat_model), json.dumps(page[0])]
        environment = environment_of(settings)
        run = finish(command, environment, 900, server_for(environment))
        assert run.code == 0, run.output[-3000:]
        return torch.tensor(run.result)

    return score


def ran(log: Path) -> set[str]:
    return {line.removeprefix("[OOT-DISPATCH] ") for line in log.read_text().splitlines()}


@pytest.mark.parametrize("by", ["reference", "flagos"])
def test_page_of_text_is_as_probable_as_transformers_says(score, page, faulty, tmp_path: Path, by: str):
    log = tmp_path / "dispatch.log"
    settings = {**faulty, "USE_FLAGGEMS": "0", "SGLANG_FL_PREFER": by, "SGLANG_FL_DISPATCH_LOG": str(log)}
    difference = (score(settings) - page[1]).abs().max().item()
    attention = "RadixAttention → sglang(torch_native)"
    assert ran(log) == {attention, *(f"{layer} → {by}({by})" for layer in LAYERS)}
    assert difference < LIMIT


def test_bisect_finds_a_mistake_planted_in_it(chat_model: Path, faulty, environment_of, tmp_path: Path):
    (Path(faulty["FAULTS_FOLDER"]) / "fused").touch()
    command = [
        *(sys.executable, "-m", "sglang_fl", "bisect"),
        "--model",
        str(chat_model),
        "--json",
    ]
    command += ["--folder", str(tmp_path), "--device", "cpu", "--max-total-tokens", "2048"]
    # Of random tokens in bfloat16 rounding alone changes this model's numbers by 4 nats.
    command += ["--dtype", "float32", "--prompt", PAGE[:600]]
    settings = environment_of({**faulty, "USE_FLAGGEMS": "0"})
    try:
        run = finish(command, settings, 900, server_for(settings))
    finally:
        (Path(faulty["FAULTS_FOLDER"]) / "fused").unlink()
    assert run.code == 1, run.output[-3000:]
    (verdict,) = (json.loads(path.read_text()) for path in tmp_path.glob("*/verdict.json"))
    assert [culprit["name"] for culprit in verdict["culprits"]] == ["silu_and_mul"]

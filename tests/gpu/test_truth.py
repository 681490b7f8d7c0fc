"""Model families on an NVIDIA GPU in bfloat16: ours are no further from float32 than vanilla SGLang is.

transformers reads the same text with the same weights, rounded to bfloat16, in float32. All engines run at
once, as many as ``TRUTH_ENGINES`` says.

Where a router chooses, a rounding decides now and then which expert runs, and the few tokens after it are far
away on either side. So the distances of two engines differ by chance, and the test takes two standard errors
into account, with a prompt as what is drawn at random.
"""

import json
import math
import os
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.models import BY_NAME, make_model
from tests.engine.words import FIRST_WORD, VOCABULARY
from tests.gpu.served import OURS, VANILLA, Answer, run

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

#: Ours may be so much further, beside what chance may make of it.
SLACK = 1.02
#: Lengths of the prompts: 5,800 tokens.
LENGTHS = (5, 64, 129, 200, 331, 400) * 5
WITH_HEADS = {"head_dim": 64}
#: Two of them transformers derives from the others as a configuration is made.
LATENT = {
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
    "head_dim": 64,
    "qk_head_dim": 128,
}


@dataclass(frozen=True)
class Shape:
    """What a family has otherwise on a GPU than in ``tests/engine/models.py``.

    Parameters
    ----------
    config : of its configuration: SGLang's own kernels refuse the small heads that a CPU may have
    engine : arguments of ``sgl.Engine``
    """

    config: Mapping[str, Any] = field(default_factory=lambda: WITH_HEADS)
    engine: Mapping[str, Any] = field(default_factory=dict)


SHAPES = {
    "Qwen2": Shape(),
    "Qwen3": Shape(),
    "Llama-YaRN": Shape(),
    "Gemma-2-capped": Shape(),
    "Gemma-3": Shape({**WITH_HEADS, "num_key_value_heads": 1}),
    "Mixtral": Shape({**WITH_HEADS, "hidden_size": 256}),  # SGLang divides it by the heads
    "Qwen3-MoE": Shape(),
    "GLM-4-MoE": Shape(),
    "DeepSeek-V2-Lite": Shape(LATENT),
    "DeepSeek-V3": Shape({**LATENT, "q_lora_rank": 128}),
    "GPT-OSS": Shape(engine={"moe_runner_backend": "triton"}),
    "Qwen3-Next": Shape(
        {**WITH_HEADS, "linear_key_head_dim": 128, "linear_value_head_dim": 128},
        {"max_mamba_cache_size": 64, "max_running_requests": 32},
    ),
}
#: FlashInfer's fused all-reduce is compiled from its source, for minutes.
RANKS = {1: {}, 2: {"tp_size": 2, "enforce_disable_flashinfer_allreduce_fusion": True}}
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")


@dataclass(frozen=True)
class Truth:
    """A checkpoint, and how far an engine's log-probabilities are from float32.

    Parameters
    ----------
    folder : of the checkpoint
    distances : of the answers to ``prompts``: the mean of each, in nats
    """

    folder: Path
    distances: Callable[[Answer], list[float]]


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(FIRST_WORD, VOCABULARY, (n,), generator=generator).tolist() for n in LENGTHS]


def truth_of(name: str, folder: Path) -> Truth:
    family = BY_NAME[name]

    def config() -> Any:
        made = family.config()
        for key, value in SHAPES[name].config.items():
            setattr(made, key, value)
        return made

    model = make_model(replace(family, config=config), folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(folder)
    written = folder / "config.json"  # GPT-OSS takes its dtype from there, whatever the launch line says
    written.write_text(json.dumps(json.loads(written.read_text()) | {"dtype": "bfloat16"}))

    def distances(answer: Answer) -> list[float]:
        apart = []
        for prompt, row in zip(prompts(), answer[0], strict=True):
            text = torch.tensor([prompt + row["tokens"]])
            with torch.no_grad():
                logits = model(input_ids=text, use_cache=False).logits[0, :-1].double()
            expected = logits.log_softmax(-1).gather(-1, text[0, 1:, None])[:, 0]
            given = torch.tensor(row["prefill"][1:] + row["decode"], dtype=torch.float64)
            apart.append(float((given - expected).abs().mean()))
        return apart

    return Truth(folder, distances)


Answers = Callable[[str, int], tuple[Truth, Answer, Answer]]


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Return a function that gives the truth of a family, and what vanilla SGLang and ours answer."""
    folder = tmp_path_factory.mktemp("truth")
    asked = [item.callspec.params for item in request.session.items if item.path == request.path]
    wanted = [(params["family"], params["tp"]) for params in asked]
    truths = {name: truth_of(name, folder / name) for name in dict.fromkeys(name for name, _ in wanted)}
    with ThreadPoolExecutor(int(os.environ.get("TRUTH_ENGINES", "8"))) as pool:

        def start(name: str, tp: int, side: str) -> Future[Answer]:
            engine = {**SHAPES[name].engine, **RANKS[tp]}
            settings = {"vanilla": VANILLA, "ours": OURS}[side]
            of = f"{name}-tp{tp}.{side}"
            return pool.submit(run, of, truths[name].folder, engine, settings, prompts(), folder)

        started = {
            (name, tp): [start(name, tp, side) for side in ("vanilla", "ours")]
            for name, tp in wanted
            if tp <= torch.cuda.device_count()
        }

        def answer(name: str, tp: int) -> tuple[Truth, Answer, Answer]:
            vanilla, ours = (side.result() for side in started[name, tp])
            return truths[name], vanilla, ours

        yield answer


@pytest.mark.parametrize("tp", [1, pytest.param(2, marks=TWO)], ids=["tp1", "tp2"])
@pytest.mark.parametrize("family", SHAPES)
def test_ours_are_no_further_from_float32_than_vanilla(family: str, tp: int, answers: Answers):
    truth, vanilla, ours = answers(family, tp)
    of_vanilla, of_ours = truth.distances(vanilla), truth.distances(ours)
    theirs, mine = statistics.fmean(of_vanilla), statistics.fmean(of_ours)
    further = [own - other for own, other in zip(of_ours, of_vanilla, strict=True)]
    error = statistics.stdev(further) / math.sqrt(len(further))
    print(f"| {family} | {tp} | {theirs:.2e} | {mine:.2e} | {mine / theirs:.3f} ({error / theirs:.3f}) |")
    assert any("→ flagos(" in line for line in ours[1])
    assert not any("→ flagos(" in line for line in vanilla[1])
    assert mine <= SLACK * theirs + 2 * error

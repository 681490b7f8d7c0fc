"""Model families on an NVIDIA GPU in bfloat16: ours are no further from float32 than vanilla SGLang is.

transformers reads the same text with the same weights, rounded to bfloat16, in float32. All engines run at
once, as many as ``TRUTH_ENGINES`` says.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.models import FAMILIES, make_model
from tests.engine.words import FIRST_WORD, VOCABULARY
from tests.gpu.served import OURS, VANILLA, Answer, run

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

#: Ours may be so much further, for what is drawn at random.
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
    "Mixtral": Shape(),
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
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")


@dataclass(frozen=True)
class Truth:
    """A checkpoint, and the mean distance of an engine's log-probabilities from float32.

    Parameters
    ----------
    folder : of the checkpoint
    distance : of the answers to ``prompts``, in nats
    """

    folder: Path
    distance: Callable[[Answer], float]


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(FIRST_WORD, VOCABULARY, (n,), generator=generator).tolist() for n in LENGTHS]


def truth_of(name: str, folder: Path) -> Truth:
    family = next(family for family in FAMILIES if family.name == name)

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

    def distance(answer: Answer) -> float:
        apart = []
        for prompt, row in zip(prompts(), answer[0], strict=True):
            text = torch.tensor([prompt + row["tokens"]])
            with torch.no_grad():
                logits = model(input_ids=text, use_cache=False).logits[0, :-1].double()
            expected = logits.log_softmax(-1).gather(-1, text[0, 1:, None])[:, 0]
            given = torch.tensor(row["prefill"][1:] + row["decode"], dtype=torch.float64)
            apart.append((given - expected).abs())
        return float(torch.cat(apart).mean())

    return Truth(folder, distance)


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
            engine = {**SHAPES[name].engine, "tp_size": tp}
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
    theirs, mine = truth.distance(vanilla), truth.distance(ours)
    print(f"| {family} | {tp} | {theirs:.2e} | {mine:.2e} | {mine / theirs:.3f} |")
    assert any("→ flagos(" in line for line in ours[1])
    assert not any("→ flagos(" in line for line in vanilla[1])
    assert mine <= SLACK * theirs

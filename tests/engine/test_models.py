"""Model families on the real engine, judged by transformers on the same weights in float32.

Every op runs on an implementation of a vendor package, which is right until a mistake is planted in
it. Without one the engine must agree with transformers; with any one of them it must not.
"""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sglang_fl.sglang_adapter.seams import installed_version
from tests.engine.fake_vendor import install_vendor
from tests.engine.mistaken_vendor import mistakes_of
from tests.engine.models import ATTENTION, FAMILIES, IMAGE, OURS, Family, make_model
from tests.engine.words import FIRST_WORD, SPECIAL, VOCABULARY, make_tokenizer
from tests.programs import finish, server_for

pytestmark = pytest.mark.timeout(300)

GENERATE = Path(__file__).parent / "generate.py"
MISTAKEN = Path(__file__).parent / "mistaken_vendor.py"

#: Log-probabilities in nats. Rounding in float32 costs 1e-5; the smallest mistake must cost more.
LIMIT = 1e-3

#: Ops that no prompt is read by.
DECODING = (
    "causal_conv1d_update",
    "decode_attention",
    "fused_recurrent_gated_delta_rule_packed_decode",
    "kv_cache_write",
    "selective_state_update",
)

LENGTHS = (3, 40, 200, 331)
#: Followers repeat this share of a prompt; then come tokens of their own.
SHARED = 150


@dataclass(frozen=True)
class Difference:
    """How far answers are from what transformers says of the same tokens.

    Parameters
    ----------
    prefill, decode : the largest difference of a log-probability there
    tokens : how many of the generated tokens are not the most probable ones
    """

    prefill: float
    decode: float
    tokens: int


@dataclass(frozen=True)
class Judged:
    """What one engine answered, and how far that is from transformers.

    Parameters
    ----------
    family : what ran
    dispatched : the lines of the dispatch log
    differences : by what was asked: ``prompts``, ``followers``, ``again``, a mistake's name, or ``weights``:
        after those of another checkpoint were loaded in the running engine
    cached_tokens : of each follower
    """

    family: Family
    dispatched: set[str]
    differences: dict[str, Difference]
    cached_tokens: list[int]


@dataclass(frozen=True)
class Prompt:
    """One request, as SGLang gets it and as transformers reads it.

    Parameters
    ----------
    sent : token ids, with one token for a picture
    read : the same with as many tokens as the picture has
    start : SGLang gives log-probabilities from here on; a picture's tokens have none
    image : the picture's file, or None
    seen : the picture as transformers takes it
    """

    sent: list[int]
    read: list[int]
    start: int = 0
    image: str | None = None
    seen: dict[str, torch.Tensor] = field(default_factory=dict)


def draw_prompts(family: Family, folder: Path) -> tuple[list[Prompt], list[Prompt]]:
    """Return prompts, and followers that begin like them."""
    generator = torch.Generator().manual_seed(1)

    def draw(length: int) -> list[int]:
        return torch.randint(FIRST_WORD, VOCABULARY, (length,), generator=generator).tolist()

    texts = [draw(length) for length in LENGTHS]
    prompts = [Prompt(text, text) for text in texts]
    tails = [text[:SHARED] + draw(30) for text in texts if len(text) > SHARED]
    followers = [Prompt(text, text, start=SHARED) for text in tails]
    if family.processor is not None:
        before, after = draw(10), draw(60)
        prompts.append(with_picture(family, folder, before, after))
        followers.append(with_picture(family, folder, before, after[:40] + draw(9)))
    return prompts, followers


def with_picture(family: Family, folder: Path, before: list[int], after: list[int]) -> Prompt:
    processor = family.processor(make_tokenizer()).image_processor
    image = folder / IMAGE
    seen = dict(processor(images=[Image.open(image)], return_tensors="pt"))
    count = int(seen["image_grid_thw"].prod()) // processor.merge_size**2
    begin, token, end = (SPECIAL.index(f"<|{name}|>") for name in ("vision_start", "image_pad", "vision_end"))
    return Prompt(
        [*before, begin, token, end, *after],
        [*before, begin, *[token] * count, end, *after],
        len(before) + count + 2,
        str(image),
        seen,
    )


def as_request(prompts: list[Prompt]) -> dict[str, Any]:
    """Return the arguments of ``Engine.generate``."""
    images = [prompt.image for prompt in prompts]
    return {
        "input_ids": [prompt.sent for prompt in prompts],
        "logprob_start_len": [prompt.start for prompt in prompts],
        "image_data": images if any(images) else None,
    }


def compare(model: Any, prompts: list[Prompt], answers: list[dict[str, Any]]) -> Difference:
    """Let transformers read prompt and answer as one text and compare what it says of each token."""
    prefill, decode, tokens = 0.0, 0.0, 0
    for prompt, answer in zip(prompts, answers, strict=True):
        text = torch.tensor([prompt.read + answer["tokens"]])
        logits = read(model, text, prompt)
        expected = logits.log_softmax(-1).gather(-1, text[0, 1:, None])[:, 0]
        new = len(answer["tokens"])
        tokens += int((logits[-new:].argmax(-1) != text[0, -new:]).sum())
        assert answer["prompt_tokens"] == len(prompt.read)
        given = answer["prefill"][1:]  # SGLang gives none for the first
        assert len(given) == len(prompt.read) - prompt.start - 1
        prefill = max(prefill, distance(given, expected[prompt.start : len(prompt.read) - 1]))
        decode = max(decode, distance(answer["decode"], expected[-new:]))
    return Difference(prefill, decode, tokens)


def read(model: Any, text: torch.Tensor, prompt: Prompt) -> torch.Tensor:
    """Return what transformers expects after each token of the text but the last."""
    seen = prompt.seen
    if seen:
        is_picture = text == SPECIAL.index("<|image_pad|>")
        seen = {**seen, "mm_token_type_ids": is_picture.int()}
    with torch.no_grad():
        return model(input_ids=text, use_cache=False, **seen).logits[0, :-1].double()


def distance(given: list[float], expected: torch.Tensor) -> float:
    return float((torch.tensor(given, dtype=torch.float64) - expected).abs().max())


@dataclass(frozen=True)
class Bench:
    """What the engines of all families have in common.

    Parameters
    ----------
    environment : in which they run
    planted : the folder in which a file with a mistake's name plants it
    log : the dispatch log
    """

    environment: dict[str, str]
    planted: Path
    log: Path


@pytest.fixture(scope="session")
def bench(tmp_path_factory, environment_of) -> Bench:
    return bench_in(tmp_path_factory.mktemp("families"), environment_of)


def bench_in(folder: Path, environment_of: Any, **settings: str) -> Bench:
    """Install the vendor package into which mistakes can be planted; its modules may lie beside others."""
    planted, log = folder / "planted", folder / "dispatch.log"
    planted.mkdir()
    environment = environment_of(
        {
            "PYTHONPATH": str(install_vendor(folder / "vendor", "mistaken", MISTAKEN.read_text())),
            "MISTAKES_FOLDER": str(planted),
            "SGLANG_FL_PREFER": "vendor",
            "SGLANG_FL_STRICT": "1",
            "SGLANG_MAMBA_CONV_DTYPE": "float32",  # as all else is; SGLang's default rounds to bfloat16
            "SGLANG_FL_DISPATCH_LOG": str(log),
            **settings,
        }
    )
    return Bench(environment, planted, log)


@pytest.fixture(
    scope="module", params=[family for family in FAMILIES if installed_version() in family.releases], ids=str
)
def judged(request, tmp_path_factory, bench: Bench) -> Judged:
    """Run one engine for a family and compare all that it says."""
    family = request.param
    if request.config.getoption("--attention-backend") and "AttentionKernels.decode" not in family.runs:
        family = replace(family, runs={**family.runs, **ATTENTION}, engine={**family.engine, **OURS})
    verdict = judge(family, tmp_path_factory.mktemp("family"), bench)
    print(row_of(verdict))
    return verdict


def judge(family: Family, folder: Path, bench: Bench) -> Judged:
    model = make_model(family, folder / "model")
    other = make_model(family, folder / "other", seed=1)
    prompts, followers = draw_prompts(family, folder / "model")
    others, _ = draw_prompts(family, folder / "other")  # SGLang keeps what old weights made of a picture
    shown = prompts[: family.shown_by]
    questions = {
        "engine": {
            "model_path": str(folder / "model"),
            "skip_tokenizer_init": True,
            "max_total_tokens": 2048,
            "dtype": "float32",
            "log_level": "info",
            "random_seed": 1,
            "sleep_on_idle": True,  # it would turn round meanwhile, on a core that others need
            **family.engine,
        },
        "prompts": as_request(prompts),
        "followers": as_request(followers),
        "mistaken": as_request(shown),
        "mistakes": mistakes_in(family),
        "planted": str(bench.planted),
        "weights": str(folder / "other"),
        "others": as_request(others),
    }
    (folder / "questions.json").write_text(json.dumps(questions))
    bench.log.write_text("")
    command = [sys.executable, str(GENERATE), str(folder / "questions.json")]
    run = finish(command, bench.environment, 240, server_for(bench.environment))
    assert run.code == 0, run.output[-5000:]
    answers = run.result
    return Judged(
        family,
        set(bench.log.read_text().splitlines()),
        {
            "prompts": compare(model, prompts, answers["prompts"]),
            "followers": compare(model, followers, answers["followers"]),
            "again": compare(model, prompts, answers["again"]),
            "weights": compare(other, others, answers["weights"]),
            **{name: compare(model, shown, rows) for name, rows in answers["mistakes"].items()},
        },
        [row["cached_tokens"] for row in answers["followers"]],
    )


def row_of(judged: Judged) -> str:
    """Return the family's row of the table in ``docs/models.md``; ``pytest -s`` shows it."""
    prompts, followers = judged.differences["prompts"], judged.differences["followers"]
    classes = ", ".join(f"`{name}`" for name in sorted(expected_classes(judged.family)))
    cached = max(followers.prefill, followers.decode)
    figures = (prompts.prefill, prompts.decode, cached, least_noticed(judged))
    cells = (judged.family.name, judged.family.covers, classes, *(f"{figure:.1e}" for figure in figures))
    return f"| {' | '.join(cells)} |"


def least_noticed(judged: Judged) -> float:
    """Return the difference that the least visible mistake makes."""
    return min((visible(judged, name) for name in mistakes_in(judged.family)), default=0.0)


def visible(judged: Judged, mistake: str) -> float:
    """Return the difference that a mistake makes, where it makes one."""
    found = judged.differences[mistake]
    return found.decode if mistake.partition(".")[0] in DECODING else found.prefill


def mistakes_in(family: Family) -> list[str]:
    ops = sorted({*expected_classes(family).values()} - family.once)
    names = [f"{op}.{name}" for op in ops for name in mistakes_of(op, family.writes_cache)]
    return [name for name in names if name not in family.no_mistakes]


def expected_classes(family: Family) -> dict[str, str]:
    """Return the layer classes that must run on ours."""
    if family.fused is None:
        return family.runs
    others = {name: op for name, op in family.runs.items() if op != "rotary_embedding"}
    return {**others, family.fused: "qk_norm_rope"}


def assert_agrees(difference: Difference) -> None:
    assert difference.tokens == 0
    assert difference.prefill < LIMIT
    assert difference.decode < LIMIT


def test_prompts_of_many_lengths_agree(judged: Judged):
    assert_agrees(judged.differences["prompts"])


def test_requests_with_a_cached_prefix_agree(judged: Judged):
    assert min(judged.cached_tokens) >= 30 * judged.family.is_cached
    page = judged.family.engine.get("page_size", 1)
    assert [count % page for count in judged.cached_tokens] == [0] * len(judged.cached_tokens)
    assert_agrees(judged.differences["followers"])


def test_exactly_the_expected_layer_classes_ran_on_ours(judged: Judged):
    expected = expected_classes(judged.family)
    lines = {f"[OOT-DISPATCH] {name} → vendor(vendor.mistaken)" for name in expected}
    if "AttentionKernels.decode" not in expected:
        lines.add("[OOT-DISPATCH] RadixAttention → sglang(torch_native)")
    lines |= {f"[OOT-DISPATCH] {name} → sglang(native)" for name in judged.family.left}
    assert judged.dispatched == lines


def test_every_planted_mistake_is_noticed(judged: Judged):
    missed = {
        mistake: judged.differences[mistake]
        for mistake in mistakes_in(judged.family)
        if visible(judged, mistake) <= LIMIT and judged.differences[mistake].tokens == 0
    }
    assert missed == {}


def test_without_the_mistakes_it_agrees_again(judged: Judged):
    assert_agrees(judged.differences["again"])


def test_weights_that_are_replaced_while_it_runs_are_used(judged: Judged):
    assert_agrees(judged.differences["weights"])

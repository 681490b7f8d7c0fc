"""Judges an engine by transformers, on the same weights in float32; mistakes are planted in its ops."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.engine.fake_vendor import install_vendor
from tests.engine.mistaken_vendor import mistakes_of
from tests.engine.models import Family, make_model
from tests.engine.questions import Prompt, answers_to, as_request, draw_prompts, engine_arguments
from tests.engine.words import SPECIAL

__all__ = [
    "DECODING",
    "LIMIT",
    "Bench",
    "Difference",
    "Judged",
    "assert_agrees",
    "bench_in",
    "compare",
    "distance",
    "expected_classes",
    "judge",
    "mistakes_in",
    "visible",
]

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


def judge(family: Family, folder: Path, bench: Bench) -> Judged:
    model = make_model(family, folder / "model")
    other = make_model(family, folder / "other", seed=1)
    prompts, followers = draw_prompts(family, folder / "model")
    others, _ = draw_prompts(family, folder / "other")  # SGLang keeps what old weights made of a picture
    shown = prompts[: family.shown_by]
    questions = {
        "engine": engine_arguments(folder / "model", **family.engine),
        "prompts": as_request(prompts),
        "followers": as_request(followers),
        "mistaken": as_request(shown),
        "mistakes": mistakes_in(family),
        "planted": str(bench.planted),
        "weights": str(folder / "other"),
        "others": as_request(others),
    }
    bench.log.write_text("")
    run = answers_to(questions, folder, bench.environment)
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

"""What an engine in a process of its own is asked, so that its answers can be judged."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.engine.models import IMAGE, Family
from tests.engine.words import FIRST_WORD, SPECIAL, VOCABULARY, make_tokenizer
from tests.forked import Server
from tests.programs import Run, finish, server_for

__all__ = ["Prompt", "answers_to", "as_request", "draw_prompts", "engine_arguments"]

LENGTHS = (3, 40, 200, 331)
#: Followers repeat this share of a prompt; then come tokens of their own.
SHARED = 150


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


def engine_arguments(model: Path, **more: Any) -> dict[str, Any]:
    """Return the arguments of ``sgl.Engine`` for a model whose answers transformers is to judge."""
    return {
        "model_path": str(model),
        "skip_tokenizer_init": True,
        "max_total_tokens": 2048,
        "dtype": "float32",
        "log_level": "info",
        "random_seed": 1,
        "sleep_on_idle": True,  # it would turn round meanwhile, on a core that others need
        **more,
    }


def answers_to(
    questions: Mapping[str, Any],
    folder: Path,
    environment: Mapping[str, str],
    server: Server | None = None,
) -> Run:
    """Run ``generate.py``, which must end well; return the run, whose result are the answers.

    Parameters
    ----------
    questions : as ``generate.py`` says; none is about mistakes unless they are given
    folder : where they are written
    environment : of the process
    server : of which it is forked; one with SGLang loaded if None
    """
    file = folder / "questions.json"
    file.write_text(json.dumps({"mistakes": [], "planted": "", **questions}))
    command = [sys.executable, str(Path(__file__).parent / "generate.py"), str(file)]
    run = finish(command, environment, 280, server or server_for(environment))
    assert run.code == 0, run.output[-5000:]
    return run

"""What both sides are asked: token sequences, and the five ways in which a server meets them.

A server computes the same number in several ways: alone or in a batch, from a long prompt or a short one,
with or without a cached prefix, in a decode step. Each has kernels of its own, so each is asked for.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CLASSES", "LONG", "SAMPLE", "Question", "continuations_wanted", "made_up", "questions_about"]

Tokens = tuple[int, ...]

SHORT, LONG_CLASS, BATCHED, CACHED, DECODE = CLASSES = ("short", "long", "batched", "cached", "decode")
#: A sequence of so many tokens is long.
LONG = 64
#: Lengths of the prompts that are made up where the user gives none.
LENGTHS = (2, 5, 17, 33, 96, 200, 400)
#: Tokens that a side generates behind each prompt, and behind the middle of what was recorded.
STEPS, LATER_STEPS = 24, 8
#: Tokens that each sequence of a batch is continued by: decode steps of a batch have kernels of their own.
BATCH_STEPS = 4
#: Sequences of one request at most.
BATCH = 8
#: Sequences that are asked for with a cached prefix.
MOST_CACHED = 3

#: The tokens of prompts that are made up are this text's: every tokenizer has them, and none is special.
SAMPLE = (
    "The quick brown fox jumps over the lazy dog near 1984 rivers. When it rains, we sing: do re mi fa so! "
    'def area(width, height): return width * height  # "square" metres? Prices rose 3.5% in July, he said; '
    "nobody knew why. Über den Wolken, là-bas, mañana, Москва, 东京, 안녕. A list: [1, 2, 3], {key: value}. "
    "Water boils at 100 degrees, ice melts at zero, and light needs eight minutes from the sun to us."
)


@dataclass(frozen=True)
class Question:
    """One request to one side.

    Parameters
    ----------
    name : the class of requests that it stands for, one of ``CLASSES``
    sequences : token ids; several are one batch
    start : log-probabilities are asked for from this token on; a server may take what is before it from its
        prefix cache, and nothing else
    steps : how many tokens to generate
    """

    name: str
    sequences: tuple[Tokens, ...]
    start: int = 0
    steps: int = 1

    def __post_init__(self) -> None:
        shortest = min(map(len, self.sequences), default=0)
        if self.name not in CLASSES or not shortest or not 0 <= self.start < shortest or self.steps < 1:
            raise ValueError(f"no question: {self}")


def made_up(tokens: Sequence[int], longest: int) -> list[Tokens]:
    """Draw prompts of many lengths from a sample's tokens, always the same ones.

    Parameters
    ----------
    tokens : those of ``SAMPLE``, in order
    longest : no prompt is longer
    """
    draw = random.Random(0)
    kinds = sorted(set(tokens))
    lengths = sorted({min(length, longest) for length in LENGTHS})
    return [tuple(draw.choices(kinds, k=length)) for length in lengths]


def continuations_wanted(prompts: Sequence[Tokens]) -> list[Question]:
    """Return the questions whose answers are recorded: what a side generates behind each prompt."""
    return [Question(DECODE, (prompt,), steps=STEPS) for prompt in prompts]


def questions_about(prompts: Sequence[Tokens], continuations: Sequence[Tokens]) -> list[Question]:
    """Return the questions about prompts together with what was recorded behind them.

    Parameters
    ----------
    prompts : at least one
    continuations : what the first side generated behind each, and both sides are given from now on
    """
    texts = [(*prompt, *behind) for prompt, behind in zip(prompts, continuations, strict=True)]
    alone = [Question(LONG_CLASS if len(text) >= LONG else SHORT, (text,)) for text in texts]
    # Free decoding ends to be comparable where two sides choose another token, so it begins anew further on.
    middles = [
        (*prompt, *behind[: len(behind) // 2]) for prompt, behind in zip(prompts, continuations, strict=True)
    ]
    later = [Question(DECODE, (text,), steps=LATER_STEPS) for text in middles]
    # Asked last: by now the prefixes are in the caches. What is taken from there ends with the prompt, since
    # what is kept of tokens behind it a decode step may have computed, and that is another class.
    starts = {text: min(len(prompt), len(text) // 2) for prompt, text in zip(prompts, texts, strict=True)}
    longest = sorted(starts, key=len, reverse=True)[:MOST_CACHED]
    cached = [Question(CACHED, (text,), start=starts[text]) for text in longest if len(text) > 1]
    return [*alone, *_batches(texts), *later, *cached]


def _batches(texts: Sequence[Tokens]) -> list[Question]:
    """Return a batch of two and one of many; a lone sequence goes with its own beginning."""
    many = [*texts, texts[0][: (len(texts[0]) + 1) // 2]][:BATCH] if len(texts) == 1 else [*texts]
    groups = [many[at : at + BATCH] for at in range(0, len(many), BATCH)]
    if len(many) > 2:
        groups.append([many[0], many[-1]])
    return [Question(BATCHED, tuple(group), steps=BATCH_STEPS) for group in groups if len(group) > 1]

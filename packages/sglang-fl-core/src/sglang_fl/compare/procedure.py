"""What is asked in which order: who both sides are, what the first would say, and every question twice."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sglang_fl.compare.answers import Answer
from sglang_fl.compare.client import About
from sglang_fl.compare.judge import Judgement, floor_of, judge
from sglang_fl.compare.places import Exchange
from sglang_fl.compare.questions import (
    CACHED,
    LONG,
    LONG_CLASS,
    SAMPLE,
    STEPS,
    Question,
    Tokens,
    continuations_wanted,
    made_up,
    questions_about,
)
from sglang_fl.errors import ServerError, SettingsError, quoted
from sglang_fl.progress import Count

__all__ = ["Comparison", "Side", "compare_sides"]


class Side(Protocol):
    """A server, or a checkpoint that transformers runs."""

    def about(self) -> About:
        """Return what it is."""
        ...

    def tokens_of(self, text: str) -> Tokens:
        """Return a text's tokens by its tokenizer."""
        ...

    def ask(self, question: Question) -> tuple[Answer, ...]:
        """Return an answer for each sequence of a question."""
        ...


@dataclass(frozen=True)
class Comparison:
    """A judgement, and of whom.

    Parameters
    ----------
    judgement : what the answers say
    sides : what was compared, A and B
    limits : what could not be asked or is taken for granted
    questions : that each side was asked, twice each
    seconds : that it took
    """

    judgement: Judgement
    sides: tuple[About, About]
    limits: tuple[str, ...]
    questions: int
    seconds: float


def compare_sides(sides: tuple[Side, Side], prompts: Sequence[str], say: Callable[[str], None]) -> Comparison:
    """Ask two sides the same and judge their answers.

    Parameters
    ----------
    sides : what the first generates is what both are given later
    prompts : texts; without any, tokens are made up
    say : called with each step

    Raises
    ------
    ServerError : a side cannot be asked, or they serve other models or other tokenizers
    SettingsError : a prompt is empty or too long
    """
    began = time.monotonic()
    say("asking A what it is")
    first_about = sides[0].about()
    say("asking B what it is; a checkpoint is loaded")
    abouts = (first_about, sides[1].about())
    _require_one_model(*abouts)
    tokens = _prompts(sides, abouts, prompts)
    first = continuations_wanted(tokens)
    count = Count(len(first))
    exchanges = [_exchange(q, sides, say, count.next(f"continuations, {q.name}")) for q in first]
    recorded = [exchange.sides[0][0][0].tokens for exchange in exchanges]
    later = questions_about(tokens, recorded)
    count = Count(len(later))
    exchanges += [_exchange(q, sides, say, count.next(f"questions, {q.name}")) for q in later]
    floor = floor_of((about.dtype for about in abouts), any(about.quantization for about in abouts))
    return Comparison(
        judge(exchanges, floor),
        abouts,
        tuple(_limits(abouts, exchanges)),
        len(exchanges),
        time.monotonic() - began,
    )


def _exchange(
    question: Question, sides: tuple[Side, Side], say: Callable[[str], None], told: str
) -> Exchange:
    """Ask in turn, A B A B: what changes on a side with time is drift then."""
    say(told)
    askings = [[side.ask(question) for side in sides] for _ in range(2)]
    return Exchange(question, ((askings[0][0], askings[1][0]), (askings[0][1], askings[1][1])))


def _require_one_model(one: About, other: About) -> None:
    if one.architecture and other.architecture and one.architecture != other.architecture:
        raise ServerError(
            f"other model: {one.title} serves {quoted(one.model)} ({one.architecture}), {other.title} "
            f"{quoted(other.model)} ({other.architecture}). Compare servers of the same model"
        )


def _prompts(sides: tuple[Side, Side], abouts: tuple[About, About], texts: Sequence[str]) -> list[Tokens]:
    sample = _tokens(sides, abouts, SAMPLE)
    longest = min((about.longest for about in abouts if about.longest), default=None)
    room = None if longest is None else longest - 2 * STEPS
    if not texts:
        return made_up(sample, max(1, room) if room is not None else len(sample) * LONG)
    prompts = []
    for text in texts:
        tokens = _tokens(sides, abouts, text)
        if not tokens:
            raise SettingsError(f"--prompt {quoted(text)}: it has no tokens")
        if room is not None and len(tokens) > room:
            told = f"{len(tokens)} tokens, and the servers take {room} beside what is generated"
            raise SettingsError(f"--prompt {quoted(text)}: {told}")
        prompts.append(tokens)
    return prompts


def _tokens(sides: tuple[Side, Side], abouts: tuple[About, About], text: str) -> Tokens:
    """Return a text's tokens, which both sides must agree about."""
    one, other = (side.tokens_of(text) for side in sides)
    if one != other:
        at = next(
            (n for n, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other))
        )
        raise ServerError(
            f"other tokenizer: {abouts[0].title} and {abouts[1].title} read {quoted(text[:60])} as other "
            f"tokens, from token {at} on ({[*one[at : at + 3]]} and {[*other[at : at + 3]]}). "
            f"Compare servers of the same model"
        )
    return one


def _limits(abouts: tuple[About, About], exchanges: Sequence[Exchange]) -> list[str]:
    limits = []
    asked = {exchange.question.name for exchange in exchanges}
    if LONG_CLASS not in asked:
        limits.append(f"no prompt of {LONG} tokens or more: nothing is known of long ones")
    for index, (side, about) in enumerate(zip("AB", abouts, strict=True)):
        is_server = about.software.startswith("SGLang")
        if is_server and about.dtype not in ("float32", "float16", "bfloat16", "half", "float"):
            told = f"its dtype is {about.dtype!r}" if about.dtype else "it does not tell its dtype"
            limits.append(f"{side}: {told}; taken for bfloat16")
        rows = [
            row for x in exchanges if x.question.name == CACHED for asking in x.sides[index] for row in asking
        ]
        if is_server and rows and not any(row.cached for row in rows):
            why = "keeps no prefixes" if not about.has_cache else "took none"
            limits.append(f"{side} {why}: of cached prefixes nothing is known on this side")
    return limits

"""``sglang-fl compare``: what it asks, and how it judges drawn answers."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_fl.compare.answers import Answer
from sglang_fl.compare.judge import FEWEST, Outcome, floor_of, judge
from sglang_fl.compare.places import Exchange
from sglang_fl.compare.questions import (
    BATCH,
    CLASSES,
    DECODE,
    LONG,
    Question,
    continuations_wanted,
    made_up,
    questions_about,
)

FLOOR = 1e-3


@given(st.lists(st.integers(0, 99), min_size=1), st.integers(1, 600))
def test_made_up_prompts_are_within_the_vocabulary_and_the_room(tokens: list[int], longest: int):
    prompts = made_up(tokens, longest)
    assert prompts == made_up(tokens, longest)
    assert {token for prompt in prompts for token in prompt} <= {*tokens}
    assert 1 <= min(map(len, prompts)) <= max(map(len, prompts)) <= longest


@given(st.lists(st.integers(1, 200), min_size=1, max_size=30))
def test_every_prompt_is_asked_about_in_every_class(lengths: list[int]):
    prompts = [tuple(range(length)) for length in lengths]
    first = continuations_wanted(prompts)
    assert [question.sequences[0] for question in first] == prompts
    later = questions_about(prompts, [(1,) * 24] * len(prompts))
    texts = {(*prompt, *(1,) * 24) for prompt in prompts}
    alone = [q.sequences[0] for q in later if q.name in ("short", "long")]
    assert {*alone} == texts
    assert all(
        (len(q.sequences[0]) >= LONG) == (q.name == "long") for q in later if q.name in ("short", "long")
    )
    batches = [q.sequences for q in later if q.name == "batched"]
    assert all(1 < len(batch) <= BATCH for batch in batches)
    if len(lengths) % BATCH != 1:
        assert {text for batch in batches for text in batch} >= texts
    cached = [q for q in later if q.name == "cached"]
    assert cached
    assert all(q.sequences[0] in texts and 0 < q.start <= len(q.sequences[0]) - 24 for q in cached)
    assert {q.name for q in (*first, *later)} >= {"batched", "cached", "decode"}


@pytest.mark.parametrize(
    "words",
    [("mine", ((1,),)), ("short", ()), ("short", ((),)), ("short", ((1,),), 1), ("short", ((1,),), 0, 0)],
)
def test_a_question_that_cannot_be_answered_is_none(words: tuple[Any, ...]):
    with pytest.raises(ValueError, match="no question"):
        Question(*words)


# How answers are judged.

PROMPTS = [tuple(range(3)), tuple(range(10, 20)), tuple(range(80))]
QUESTIONS = [*continuations_wanted(PROMPTS), *questions_about(PROMPTS, [tuple(range(24))] * 3)]
Change = Callable[[Question, str, int, Answer], Answer]


def right_answer(question: Question, text: tuple[int, ...]) -> Answer:
    count = len(text) - 1 - question.start
    top = {7: -0.5, 8: -1.0, 9: -4.0}
    tokens = tuple(range(7, 7 + question.steps))
    return Answer((-2.0,) * count, (top,) * count, tokens, (top,) * question.steps)


def exchanges_with(change: Change) -> list[Exchange]:
    """Return answers, the right ones changed; the change is told question, side and asking."""

    def asking(question: Question, side: str, number: int) -> tuple[Answer, ...]:
        return tuple(
            change(question, side, number, right_answer(question, text)) for text in question.sequences
        )

    return [Exchange(q, tuple(tuple(asking(q, side, n) for n in (0, 1)) for side in "AB")) for q in QUESTIONS]


def moved(answer: Answer, by: float) -> Answer:
    tops = tuple({token: value + by for token, value in top.items()} for top in answer.tops)
    return replace(answer, given=tuple(value + by for value in answer.given), tops=tops)


@given(st.randoms(use_true_random=False), st.sampled_from([1e-3, 0.125, 1.0]))
@settings(max_examples=30, deadline=None)
def test_drawn_rounding_is_the_same(random: Any, floor: float):
    judged = judge(
        exchanges_with(lambda q, side, n, a: moved(a, random.uniform(-floor / 14, floor / 14))), floor
    )
    assert judged.outcome == Outcome.SAME
    assert [row.verdict for row in judged.classes] == ["same"] * len(CLASSES)


@given(st.sampled_from(CLASSES), st.sampled_from([-1, 1]), st.floats(1.01, 1e4))
@settings(max_examples=30, deadline=None)
def test_a_class_that_is_moved_past_the_floor_differs_alone(name: str, sign: int, times: float):
    by = sign * times * FLOOR
    judged = judge(
        exchanges_with(lambda q, side, n, a: moved(a, by * (q.name == name and side == "B"))), FLOOR
    )
    assert judged.outcome == Outcome.DIFFER
    assert {row.name: row.verdict for row in judged.classes} == {
        each: "differs" if each == name else "same" for each in CLASSES
    }
    assert judged.summary.startswith(f"{name} differ")
    assert {place.name for place in judged.worst} == {name}
    assert judged.worst[0].difference == pytest.approx(abs(by), rel=1e-6)


def test_a_difference_of_all_places_needs_less_than_one_of_a_single_place():
    def single(question: Question, side: str, asking: int, answer: Answer) -> Answer:
        is_hit = side == "B" and question.name == "long"
        return replace(answer, given=(answer.given[0] + 0.5 * FLOOR, *answer.given[1:])) if is_hit else answer

    assert judge(exchanges_with(single), FLOOR).outcome == Outcome.SAME
    judged = judge(exchanges_with(lambda q, side, n, a: moved(a, 0.5 * FLOOR * (side == "B"))), FLOOR)
    assert {row.verdict for row in judged.classes} == {"differs"}


def test_where_given_or_generated_tokens_alone_differ_it_says_so():
    def decode_alone(question: Question, side: str, number: int, answer: Answer) -> Answer:
        return replace(moved(answer, 0.1), given=answer.given) if side == "B" else answer

    def prompts_alone(question: Question, side: str, number: int, answer: Answer) -> Answer:
        return replace(moved(answer, 0.1), tops=answer.tops) if side == "B" else answer

    assert "in generated tokens alone" in judge(exchanges_with(decode_alone), FLOOR).summary
    judged = judge(exchanges_with(prompts_alone), FLOOR)
    assert judged.summary == "short, long, batched, cached differ, in given tokens alone; decode agree"


@pytest.mark.parametrize(("between", "verdict"), [(0.02, "undecided"), (0.2, "differs")])
def test_a_side_that_does_not_repeat_itself_hides_what_is_not_larger(between: float, verdict: str):
    drift = 0.01
    judged = judge(exchanges_with(lambda q, side, n, a: moved(a, drift * n + between * (side == "B"))), FLOOR)
    assert {row.verdict for row in judged.classes} == {verdict}
    assert judged.outcome == (Outcome.DIFFER if verdict == "differs" else Outcome.CANNOT_DECIDE)
    assert {finding.side for finding in judged.findings if finding.kind == "drift"} == {"A", "B"}
    assert [row.drift_a for row in judged.classes] == pytest.approx([drift] * len(CLASSES))


def test_an_answer_that_went_astray_once_is_drift():
    judged = judge(
        exchanges_with(lambda q, side, n, a: moved(a, 5.0 * (side == "B" and n == 1 and q.name == "long"))),
        FLOOR,
    )
    assert judged.outcome == Outcome.CANNOT_DECIDE
    assert [row.verdict for row in judged.classes] == ["same", "undecided", "same", "same", "same"]


def test_a_difference_that_is_not_larger_than_the_drift_of_another_class_is_undecided():
    def change(question: Question, side: str, asking: int, answer: Answer) -> Answer:
        is_batch = question.name == "batched"
        return moved(answer, 0.1 * asking if is_batch else 0.05) if side == "B" else answer

    judged = judge(exchanges_with(change), FLOOR)
    assert {row.verdict for row in judged.classes} == {"undecided"}
    assert judged.outcome == Outcome.CANNOT_DECIDE


def test_few_places_say_nothing():
    question = Question("short", ((1, 2, 3),))
    answer = right_answer(question, (1, 2, 3))
    judged = judge([Exchange(question, (((answer,), (answer,)), ((answer,), (answer,))))], FLOOR)
    assert judged.outcome == Outcome.CANNOT_DECIDE
    assert "more or longer prompts" in judged.summary
    assert sum(row.places for row in judged.classes) == 3 < FEWEST


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", "AB")
def test_a_number_that_is_none_is_a_finding_and_a_difference(number: float, side: str):
    def change(question: Question, of: str, asking: int, answer: Answer) -> Answer:
        is_hit = of == side and question.name == "long"
        return replace(answer, given=(number, *answer.given[1:])) if is_hit else answer

    judged = judge(exchanges_with(change), FLOOR)
    assert judged.outcome == Outcome.DIFFER
    assert [(f.kind, f.side) for f in judged.findings] == [("not finite", side)]
    assert "(long)" in judged.findings[0].text
    assert judged.worst[0].difference == math.inf


def test_steps_without_numbers_differ_whichever_tokens_they_name():
    def change(question: Question, side: str, asking: int, answer: Answer) -> Answer:
        tops = tuple({20: math.nan, 21: math.nan} for _ in answer.tops)
        return replace(answer, tops=tops) if side == "B" and question.name == DECODE else answer

    judged = judge(exchanges_with(change), FLOOR)
    assert [row.name for row in judged.classes if row.verdict == "differs"] == [DECODE]
    assert [(f.kind, f.side) for f in judged.findings] == [("not finite", "B")]


def test_numbers_that_are_none_on_both_sides_are_no_agreement():
    judged = judge(exchanges_with(lambda q, side, n, a: replace(a, given=(math.nan,) * len(a.given))), FLOOR)
    assert judged.outcome == Outcome.DIFFER
    assert {f.side for f in judged.findings} == {"A", "B"}


@pytest.mark.parametrize(
    "emptied",
    [
        lambda a: replace(a, tokens=(), tops=()),
        lambda a: replace(a, given=(), given_tops=()),
        lambda a: replace(a, given=a.given[1:]),
    ],
)
def test_empty_answers_are_a_finding(emptied: Callable[[Answer], Answer]):
    judged = judge(
        exchanges_with(lambda q, side, n, a: emptied(a) if side == "B" and q.name != "decode" else a), FLOOR
    )
    assert judged.outcome == Outcome.DIFFER
    assert [(f.kind, f.side) for f in judged.findings] == [("empty", "B")]
    assert "empty" in judged.summary


@pytest.mark.parametrize(("by", "is_fault"), [(0.0, False), (0.5, True)])
def test_a_loop_is_a_fault_where_the_numbers_part_and_else_the_models_habit(by: float, is_fault: bool):
    def change(question: Question, side: str, asking: int, answer: Answer) -> Answer:
        if side == "A" or question.name != DECODE or question.steps < 24:
            return answer
        return replace(moved(answer, by), tokens=(*answer.tokens[:4], *(5, 6) * 10))

    judged = judge(exchanges_with(change), FLOOR)
    loops = [f for f in judged.findings if f.kind == "loop"]
    assert [(f.side, f.is_fault) for f in loops] == [("B", is_fault)]
    assert judged.outcome == (Outcome.DIFFER if is_fault else Outcome.SAME)


def test_sides_with_nothing_in_common_are_garbage():
    def change(question: Question, side: str, asking: int, answer: Answer) -> Answer:
        strange = tuple({token + 50: value for token, value in top.items()} for top in answer.given_tops)
        return replace(answer, given_tops=strange) if side == "B" else answer

    judged = judge(exchanges_with(change), FLOOR)
    assert [f.kind for f in judged.findings] == ["garbage"]
    assert judged.outcome == Outcome.DIFFER


def test_decode_steps_are_compared_only_as_long_as_the_tokens_before_them_agree():
    def change(question: Question, side: str, asking: int, answer: Answer) -> Answer:
        if side == "A" or question.name != DECODE:
            return answer
        far = [{token: value - 3 for token, value in top.items()} for top in answer.tops[3:]]
        return replace(
            answer, tokens=(*answer.tokens[:2], 99, *answer.tokens[3:]), tops=(*answer.tops[:3], *far)
        )

    judged = judge(exchanges_with(change), FLOOR)
    decode = judged.classes[CLASSES.index(DECODE)]
    assert (decode.verdict, decode.places) == ("same", 3 * sum(q.name == DECODE for q in QUESTIONS))


def test_a_likely_token_that_the_other_side_does_not_name_counts():
    def change(question: Question, side: str, asking: int, answer: Answer) -> Answer:
        tops = tuple({8: -1.0, 9: -4.0, 10: -4.5} for _ in answer.tops)
        return replace(answer, tops=tops) if side == "B" else answer

    judged = judge(exchanges_with(change), FLOOR)
    worst = judged.worst[0]  # 7 has -0.5 on A, and on B at most the -4.5 of its last
    assert (worst.token, worst.a, worst.b, worst.difference) == (7, -0.5, None, 4.0)


@pytest.mark.parametrize(
    ("dtypes", "is_quantized", "floor"),
    [
        (("float32", "float32"), False, 1e-3),
        (("float32", "bfloat16"), False, 1.0),
        (("float16", "half"), False, 0.125),
        (("auto", "float32"), False, 1.0),
        (("", "float32"), False, 1.0),
        (("float32", "float32"), True, 2.0),
    ],
)
def test_the_floor_is_that_of_the_coarser_side(dtypes: tuple[str, str], is_quantized: bool, floor: float):
    assert floor_of(dtypes, is_quantized) == floor

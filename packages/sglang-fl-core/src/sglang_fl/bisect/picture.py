"""A bisection as one page: its steps one below the other, and how they narrow to what is guilty.

A bar stands for all ops that can be switched, from left to right; what was on in a step is coloured in it.
"""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from sglang_fl.bisect.steps import Asks, Step
from sglang_fl.bisect.verdict import Culprit, Verdict
from sglang_fl.page import EMPTY, Stretch, bar, legend, page

__all__ = ["as_page"]

_GOOD, _BAD, _GUILTY = "good", "bad", "guilty"
_COLOURS = {_GOOD: ("#0969da", "#58a6ff"), _BAD: ("#e2711d", "#f0883e"), _GUILTY: ("#1f2328", "#ffffff")}
_STYLE = """
.steps { list-style: none; padding: 0 }
.step { display: grid; grid-template-columns: 5fr 7fr auto; gap: 2px 12px; padding: 5px 0 5px 12px;
  margin: 0; border-left: 4px solid var(--line) }
.step.good { border-color: var(--good) } .step.bad { border-color: var(--bad) }
.step > svg { grid-column: 1 / -1 } .what, summary { font-weight: 600 } summary { cursor: pointer }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 12px; margin: 4px 0 }
dt { color: var(--quiet) } dd { margin: 0 }
@media (max-width: 640px) { .step { grid-template-columns: 1fr auto }
  .shown { grid-column: 1 / -1; grid-row: 2 } dl { grid-template-columns: 1fr } dd { margin-bottom: 4px } }
"""
_LEGEND = {
    _GOOD: "the numbers agree with the baseline, or no call is wrong",
    _BAD: "they differ, or a call is wrong",
    EMPTY: "off",
}
#: Steps of which a bar tells something.
_WITH_BAR = (Asks.EVERYTHING, Asks.SOME, Asks.CALLS)
_BAR_HEIGHT = 12


def as_page(verdict: Verdict, subject: str) -> str:
    """Return a page of HTML with all that it needs.

    Parameters
    ----------
    verdict : with its steps
    subject : the model and its launch line
    """
    title = f"{verdict.outcome.name.lower().replace('_', ' ')}: {verdict.summary}"
    return page(f"Bisection of {subject}", _parts(verdict, subject, title), _COLOURS, _STYLE)


def _parts(verdict: Verdict, subject: str, title: str) -> Iterator[str]:
    yield f"<h1>{escape(title)}</h1>"
    yield f'<p class="quiet">sglang-fl bisect --model {escape(subject)}</p>'
    numbers = "; ".join(f"{name} {number:.3g}" for name, number in verdict.numbers.items())
    if numbers:
        yield f'<p class="quiet">{escape(numbers)}. Distances are in nats.</p>'
    for culprit in verdict.culprits:
        yield from _culprit(culprit)
    guilty = {culprit.name for culprit in verdict.culprits}
    units = tuple(dict.fromkeys(unit for step in verdict.steps for unit in step.on))
    if units:
        names = guilty & {*units}
        yield f"<h2>{len(units)} ops that can be switched, from left to right in each bar</h2>"
        yield legend(_LEGEND | ({_GUILTY: f"guilty: {', '.join(sorted(names))}"} if names else {}))
    yield from _steps(verdict.steps, units, guilty)
    rest = [*verdict.limits]
    if verdict.uncalled:
        rest.append(f"Never called with these prompts, so not judged: {', '.join(verdict.uncalled)}")
    if rest:
        yield "<h2>What this does not say</h2>"
        yield from (f'<p class="quiet">{escape(line)}</p>' for line in rest)


def _culprit(culprit: Culprit) -> Iterator[str]:
    yield f"<h2>Guilty: {escape(culprit.name)}</h2>"
    yield "<dl>"
    for name, value in vars(culprit).items():
        if value and name != "name":
            yield f"<dt>{name}</dt><dd>{escape(str(value))}</dd>"
    yield "</dl>"


def _steps(steps: Sequence[Step], units: Sequence[str], guilty: set[str]) -> Iterator[str]:
    search = next((n for n, step in enumerate(steps) if step.asks is Asks.EVERYTHING), len(steps))
    for heading, part in (("Before the search", steps[:search]), ("The search", steps[search:])):
        if part:
            yield f'<h2>{heading}</h2>\n<ol class="steps">'
            for step in part:
                yield from _step(step, units, guilty)
            yield "</ol>"


def _step(step: Step, units: Sequence[str], guilty: set[str]) -> Iterator[str]:
    told = ": ".join(filter(None, (_word(step), step.text)))
    yield f'<li class="step {_kind(step)}">'
    yield _what(step)
    yield f'<span class="shown">{escape(told)}</span><span class="quiet">{step.seconds:.3g} s</span>'
    if step.asks in _WITH_BAR:
        yield bar(_stretches(step, units, guilty), _BAR_HEIGHT, f"{len(step.on)} of {len(units)} ops are on")
    yield "</li>"


def _what(step: Step) -> str:
    """Return what a step is for; names that it counts are shown where it is opened."""
    names = step.layers or step.on
    if any(name not in step.what for name in names):
        listed = f'<span class="quiet">{escape(", ".join(names))}</span>'
        return f"<details><summary>{escape(step.what)}</summary>{listed}</details>"
    return f'<span class="what">{escape(step.what)}</span>'


def _word(step: Step) -> str:
    """Say in a word how a step went, where its text does not."""
    if not step.has_ended:
        return "it did not end"
    if step.agrees is None or step.asks in (Asks.ATTENTION, Asks.CALLS):
        return ""
    if step.asks is Asks.PLANTED:
        return "is not seen" if step.agrees else "is seen"
    return "agrees" if step.agrees else "differs"


def _kind(step: Step) -> str:
    """Return the colour of a step; a planted mistake is to be seen."""
    if not step.has_ended:
        return _BAD
    if step.agrees is None:
        return ""
    return _GOOD if step.agrees != (step.asks is Asks.PLANTED) else _BAD


def _stretches(step: Step, units: Sequence[str], guilty: set[str]) -> Iterator[Stretch]:
    """Yield what was on, neighbours as one; what is guilty by itself, where it made the numbers differ."""
    on, width = {*step.on}, 1 / len(units)

    def kind_of(number: int) -> str:
        if units[number] not in on:
            return EMPTY
        return _GUILTY if units[number] in guilty and _kind(step) == _BAD else _kind(step)

    for kind, group in groupby(range(len(units)), kind_of):
        numbers = list(group)
        first, last = units[numbers[0]], units[numbers[-1]]
        title = first if first == last else f"{first} to {last}: {len(numbers)} ops"
        title += ", off" * (kind == EMPTY)
        yield Stretch(numbers[0] * width, (numbers[-1] + 1) * width, kind, title)

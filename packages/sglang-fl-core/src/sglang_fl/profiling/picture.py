"""A profile as one page: pictures of its steps."""

from collections.abc import Iterator
from html import escape

from sglang_fl.page import EMPTY, Stretch, bar, legend, page
from sglang_fl.profiling.labels import DECODE
from sglang_fl.profiling.pieces import OURS, Piece, Who, piece_of
from sglang_fl.profiling.profile import Profile
from sglang_fl.profiling.shares import Phase
from sglang_fl.profiling.table import named, span

__all__ = ["as_page"]

#: In which order bars are stacked, and how each is called.
_NAMES = {
    Who.FLAGOS: "flagos",
    Who.VENDOR: "vendor",
    Who.REFERENCE: "reference",
    Who.AROUND: "around our kernels",
    Who.SGLANG: "SGLang's own",
    Who.COLLECTIVE: "collectives",
    Who.COPY: "copies",
    Who.UNKNOWN: "unknown",
}
_COLOURS = {
    Who.FLAGOS.value: ("#1a7f37", "#3fb950"),
    Who.VENDOR.value: ("#0969da", "#58a6ff"),
    Who.REFERENCE.value: ("#1b7c83", "#39c5cf"),
    Who.AROUND.value: ("#8ec7a0", "#2d6a40"),
    Who.SGLANG.value: ("#bc4c00", "#f0883e"),
    Who.COLLECTIVE.value: ("#8250df", "#bc8cff"),
    Who.COPY.value: ("#bf8700", "#d8a621"),
    Who.UNKNOWN.value: ("#6e7781", "#7d8590"),
}
_STYLE = """
.ends { display: flex; justify-content: space-between; margin-bottom: 14px }
.row { display: grid; grid-template-columns: 330px 1fr 130px; gap: 0 8px; align-items: center }
.row span:first-child { text-align: right }
@media (max-width: 640px) { .row { grid-template-columns: 1fr auto; margin-bottom: 5px }
  .row span:first-child { text-align: left } .row svg { grid-column: 1 / -1; grid-row: 2 } }
"""
#: Pieces of a phase that have a bar of their own.
MOST_PIECES = 16
#: Characters of the name beside a bar.
LONGEST_NAME = 50
#: Heights of bars, in pixels.
_SHARES, _STEP, _PIECE = 30, 26, 14
#: A stretch of a step shorter than this part of it is not seen.
_UNSEEN = 1 / 4000


def as_page(profile: Profile) -> str:
    """Return a page of HTML with all that it needs."""
    return page(f"Profile of {profile.model}", _parts(profile), _COLOURS, _STYLE)


def _parts(profile: Profile) -> Iterator[str]:
    software = ", ".join(f"{name} {version}" for name, version in profile.software.items())
    yield f"<h1>What the steps of {escape(profile.model)} spend their time on</h1>"
    yield f'<p class="quiet">{escape(f"{profile.device}; {software}")}</p>'
    for phase in profile.phases:
        yield from _phase(profile, phase)
    yield f'<p class="quiet">{escape(_caveat(profile))}</p>'


def _phase(profile: Profile, phase: Phase) -> Iterator[str]:
    title = f"{phase.name.capitalize()}: {phase.percent_of(*OURS):.1f} % on ours"
    yield f"<h2>{escape(title)}</h2>"
    tokens = "" if phase.name == DECODE else f", {phase.tokens:g} tokens"
    size = f"{phase.requests:g} requests{tokens}; a step takes {span(phase.step_us)}."
    yield f"<p>{escape(size + _next(profile, phase))}</p>"
    yield from _shares(phase)
    yield from _one_step(phase)
    yield from _pieces(phase)


def _next(profile: Profile, phase: Phase) -> str:
    found = profile.left(phase)[:3]
    if not found:
        return ""
    named = ", ".join(f"{each.what} ({each.percent:.1f} %)" for each in found)
    return f" To port next: {named}."


def _caveat(profile: Profile) -> str:
    unit = "kernels on the device" if profile.is_device else "ops on the CPU"
    blind = f" The profiler saw no {profile.device_type} device: this is the host's time." * profile.is_blind
    return (
        f"Shares are of the time of {unit}, run eagerly and without graphs. Gaps in the picture of a step "
        f"are as measured: watching makes them longer, graphs shorter.{blind}"
    )


def _shares(phase: Phase) -> Iterator[str]:
    """Yield one bar and its legend: what ran, by who ran it."""
    told = {
        who: f"{name} {phase.percent_of(who):.1f} %"
        for who, name in _NAMES.items()
        if phase.percent_of(who) > 0
    }
    stretches, at = [], 0.0
    for who, text in told.items():
        end = at + phase.percent_of(who) / 100
        stretches.append(Stretch(at, end, who.value, text))
        at = end
    yield bar(stretches, _SHARES, f"{phase.name}: {', '.join(told.values())}")
    yield legend({who.value: text for who, text in told.items()})


def _one_step(phase: Phase) -> Iterator[str]:
    """Yield the step of median length from left to right; where nothing ran, the ground is seen."""
    step = phase.middle
    length = step.end - step.start or 1.0
    stretches = [Stretch(0, 1, EMPTY)]
    for start, end, piece in _merged(phase):
        told = f"{piece.what}: {span(end - start)}"
        left, right = (start - step.start) / length, (end - step.start) / length
        stretches.append(Stretch(left, right, piece.who.value, told))
    idle = f"{100 * step.idle / length:.1f} % gaps"
    yield bar(stretches, _STEP, f"One {phase.name} step over time; {idle}")
    yield f'<p class="quiet ends"><span>one step, {span(length)}</span><span>{idle}</span></p>'


def _merged(phase: Phase) -> Iterator[tuple[float, float, Piece]]:
    """Yield what ran one after another; of what ran at once the first, and what follows unseen as one."""
    unseen = (phase.middle.end - phase.middle.start) * _UNSEEN
    last: tuple[float, float, Piece] | None = None
    for stretch in phase.middle.stretches:
        slice_ = stretch.slices[0]
        piece = piece_of(slice_.node, slice_.name, slice_.kind)
        if last and last[2] == piece and stretch.start - last[1] < unseen:
            last = last[0], stretch.end, piece
            continue
        if last:
            yield last
        last = stretch.start, stretch.end, piece
    if last:
        yield last


def _pieces(phase: Phase) -> Iterator[str]:
    """Yield a bar for each of the largest pieces, and one for the rest."""
    groups = [[share] for share in phase.shares[:MOST_PIECES]]
    groups += [list(phase.shares[MOST_PIECES:])] if len(phase.shares) > MOST_PIECES else []
    longest = max(sum(share.us for share in group) for group in groups)
    for number, group in enumerate(groups):
        us = sum(share.us for share in group)
        name = named(group[0], LONGEST_NAME) if number < MOST_PIECES else f"{len(group)} smaller pieces"
        kind = group[0].piece.who.value if number < MOST_PIECES else Who.UNKNOWN.value
        told = f"{sum(share.percent for share in group):.1f} %, {span(us)}"
        shown = bar([Stretch(0, us / longest, kind)], _PIECE, f"{name}: {told}")
        yield f'<div class="row"><span>{escape(name)}</span>{shown}<span class="quiet">{told}</span></div>'

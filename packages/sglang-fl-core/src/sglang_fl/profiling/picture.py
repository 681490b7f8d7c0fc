"""A profile as one page: pictures of its steps that fetch nothing, for light and for dark screens."""

from collections.abc import Iterator
from html import escape

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
_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1f2328; --quiet: #59636e; --empty: #eaeef2;
  --flagos: #1a7f37; --vendor: #0969da; --reference: #1b7c83; --around: #8ec7a0; --sglang: #bc4c00;
  --collective: #8250df; --copy: #bf8700; --unknown: #6e7781 }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --text: #e6edf3; --quiet: #9198a1;
  --empty: #21262d; --flagos: #3fb950; --vendor: #58a6ff; --reference: #39c5cf; --around: #2d6a40;
  --sglang: #f0883e; --collective: #bc8cff; --copy: #d8a621; --unknown: #7d8590 } }
body { margin: 24px auto; max-width: 960px; padding: 0 16px; background: var(--page); color: var(--text);
  font: 14px/1.5 system-ui, sans-serif }
h1 { font-size: 20px } h2 { font-size: 16px; margin: 28px 0 4px } p { margin: 4px 0 }
svg { display: block; width: 100%; height: auto; margin: 10px 0 }
rect { shape-rendering: crispEdges }
text { font: 12px system-ui, sans-serif; fill: var(--text) }
.quiet { color: var(--quiet); fill: var(--quiet) } .empty { fill: var(--empty) }
.onbar { fill: var(--page); font-weight: 600 } .end { text-anchor: end } .middle { text-anchor: middle }
.flagos { fill: var(--flagos) } .vendor { fill: var(--vendor) } .reference { fill: var(--reference) }
.around { fill: var(--around) } .sglang { fill: var(--sglang) } .collective { fill: var(--collective) }
.copy { fill: var(--copy) } .unknown { fill: var(--unknown) }
"""
WIDTH = 928
#: Pieces of a phase that have a bar of their own.
MOST_PIECES = 16
#: Characters that fit beside the bars.
LONGEST_NAME = 50
_ROW, _BARS, _LONGEST_BAR = 22, 340, 460


def as_page(profile: Profile) -> str:
    """Return a page of HTML with all that it needs."""
    software = ", ".join(f"{name} {version}" for name, version in profile.software.items())
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Profile of {escape(profile.model)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>What the steps of {escape(profile.model)} spend their time on</h1>",
        f'<p class="quiet">{escape(f"{profile.device}; {software}")}</p>',
        _legend(),
        *(part for phase in profile.phases for part in _phase(profile, phase)),
        f'<p class="quiet">{escape(_caveat(profile))}</p>',
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _phase(profile: Profile, phase: Phase) -> Iterator[str]:
    title = f"{phase.name.capitalize()}: {phase.percent_of(*OURS):.1f} % on ours"
    yield f"<h2>{escape(title)}</h2>"
    tokens = "" if phase.name == DECODE else f", {phase.tokens:g} tokens"
    size = f"{phase.requests:g} requests{tokens}; a step takes {span(phase.step_us)}."
    yield f"<p>{escape(size + _next(profile, phase))}</p>"
    yield _stacked(phase)
    yield _one_step(phase)
    yield _bars(phase)


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


def _svg(height: float, description: str, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img"'
    return "\n".join([f'{head} aria-label="{escape(description, quote=True)}">', *parts, "</svg>"])


def _rect(at: tuple[float, float], size: tuple[float, float], kind: str, title: str = "") -> str:
    told = f"<title>{escape(title)}</title>" if title else ""
    place = f'x="{at[0]:.2f}" y="{at[1]:g}" width="{size[0]:.2f}" height="{size[1]:g}"'
    return f'<rect {place} class="{kind}">{told}</rect>'


def _text(at: tuple[float, float], words: str, kind: str = "") -> str:
    return f'<text x="{at[0]:.1f}" y="{at[1]:g}" class="{kind}">{escape(words)}</text>'


def _legend() -> str:
    parts, x = [], 0.0
    for who, name in _NAMES.items():
        parts += [_rect((x, 4), (12, 12), who.value), _text((x + 17, 14), name)]
        x += 34 + 6.6 * len(name)
    parts += [_rect((x, 4), (12, 12), "empty"), _text((x + 17, 14), "gap")]
    return _svg(20, "Colours", parts)


def _stacked(phase: Phase) -> str:
    """Draw one bar: what ran, by who ran it."""
    shown = {who: phase.percent_of(who) for who in _NAMES if phase.percent_of(who) > 0}
    parts, x = [], 0.0
    for who, percent in shown.items():
        width = WIDTH * percent / 100
        parts.append(_rect((x, 0), (width, 30), who.value, f"{_NAMES[who]}: {percent:.1f} %"))
        label = next(
            (text for text in (f"{_NAMES[who]} {percent:.1f} %", f"{percent:.0f} %") if _fits(text, width)),
            "",
        )
        parts.append(_text((x + width / 2, 20), label, "onbar middle"))
        x += width
    told = ", ".join(f"{_NAMES[who]} {percent:.1f} %" for who, percent in shown.items())
    return _svg(30, f"{phase.name}: {told}", parts)


def _fits(text: str, width: float) -> bool:
    return 7 * len(text) + 8 <= width


def _one_step(phase: Phase) -> str:
    """Draw the step of median length from left to right; where nothing ran, the ground is seen."""
    step = phase.middle
    length = step.end - step.start or 1.0
    parts = [_rect((0, 0), (WIDTH, 26), "empty")]
    for start, end, piece in _merged(phase):
        left, right = WIDTH * (start - step.start) / length, WIDTH * (end - step.start) / length
        parts.append(
            _rect((left, 0), (right - left, 26), piece.who.value, f"{piece.what}: {span(end - start)}")
        )
    parts.append(_text((0, 42), f"one step, {span(length)}", "quiet"))
    idle = f"{100 * step.idle / length:.1f} % gaps"
    parts.append(_text((WIDTH, 42), idle, "quiet end"))
    return _svg(46, f"One {phase.name} step over time; {idle}", parts)


def _merged(phase: Phase) -> Iterator[tuple[float, float, Piece]]:
    """Yield what ran one after another; of what ran at once the first, and what follows unseen as one."""
    unseen = (phase.middle.end - phase.middle.start) / WIDTH / 4
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


def _bars(phase: Phase) -> str:
    """Draw a bar for each of the largest pieces, and one for the rest."""
    groups = [[share] for share in phase.shares[:MOST_PIECES]]
    groups += [list(phase.shares[MOST_PIECES:])] if len(phase.shares) > MOST_PIECES else []
    longest = max(sum(share.us for share in group) for group in groups)
    parts = []
    for number, group in enumerate(groups):
        y, us = number * _ROW, sum(share.us for share in group)
        name = named(group[0], LONGEST_NAME) if number < MOST_PIECES else f"{len(group)} smaller pieces"
        kind = group[0].piece.who.value if number < MOST_PIECES else "unknown"
        width = max(1.0, _LONGEST_BAR * us / longest)
        told = f"{sum(share.percent for share in group):.1f} %, {span(us)}"
        parts += [
            _text((_BARS - 8, y + 15), name, "end"),
            _rect((_BARS, y + 3), (width, _ROW - 6), kind),
            _text((_BARS + width + 6, y + 15), told, "quiet"),
        ]
    return _svg(len(groups) * _ROW + 4, f"{phase.name}: the largest pieces", parts)

"""A profile as one page: pictures of its steps that fetch nothing, for light and for dark screens."""

from collections.abc import Iterator
from html import escape

from sglang_fl.profiling.labels import DECODE
from sglang_fl.profiling.pieces import Piece, Who, piece_of
from sglang_fl.profiling.profile import Profile
from sglang_fl.profiling.shares import Phase
from sglang_fl.profiling.table import percents, span

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
svg { display: block; width: 100%; height: auto; margin: 8px 0 }
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
_ROW, _BARS, _LONGEST_BAR = 22, 330, 500


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
    title = f"{phase.name.capitalize()}: {100 * phase.ours:.1f} % on ours"
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
    named = ", ".join(f"{each.what} ({100 * each.share:.1f} %)" for each in found)
    return f" To port next: {named}."


def _caveat(profile: Profile) -> str:
    unit = "kernels on the device" if profile.is_device else "ops on the CPU"
    return (
        f"Shares are of the time of {unit}, run eagerly and without graphs. Gaps in the picture of a step are "
        f"as measured: watching makes them longer, graphs shorter."
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


def _kind(who: Who) -> str:
    return who.value.partition(" ")[0]


def _legend() -> str:
    parts, x = [], 0.0
    for who, name in _NAMES.items():
        parts += [_rect((x, 4), (12, 12), _kind(who)), _text((x + 17, 14), name)]
        x += 34 + 6.6 * len(name)
    parts += [_rect((x, 4), (12, 12), "empty"), _text((x + 17, 14), "gap")]
    return _svg(20, "Colours", parts)


def _stacked(phase: Phase) -> str:
    """Draw one bar: what ran, by who ran it."""
    present = [who for who in _NAMES if phase.share_of(who) > 0]
    shown = percents([phase.share_of(who) for who in present])
    parts, x = [], 0.0
    for who, percent in zip(present, shown, strict=True):
        width = WIDTH * phase.share_of(who)
        parts.append(_rect((x, 0), (width, 30), _kind(who), f"{_NAMES[who]}: {percent:.1f} %"))
        label = next(
            (text for text in (f"{_NAMES[who]} {percent:.1f} %", f"{percent:.0f} %") if _fits(text, width)),
            "",
        )
        parts.append(_text((x + width / 2, 20), label, "onbar middle"))
        x += width
    told = ", ".join(f"{_NAMES[who]} {percent:.1f} %" for who, percent in zip(present, shown, strict=True))
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
            _rect((left, 0), (right - left, 26), _kind(piece.who), f"{piece.what}: {span(end - start)}")
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
    rows = [(share.piece.what, _kind(share.piece.who), share.share, share.us) for share in phase.shares]
    rest = rows[MOST_PIECES:]
    if len(rest) > 1:
        rows = rows[:MOST_PIECES]
        rows.append(
            (f"{len(rest)} smaller pieces", "unknown", sum(r[2] for r in rest), sum(r[3] for r in rest))
        )
    longest = max(row[2] for row in rows)
    parts = []
    for number, ((what, kind, share, us), percent) in enumerate(
        zip(rows, percents([row[2] for row in rows]), strict=True)
    ):
        y = number * _ROW
        parts.append(_text((_BARS - 8, y + 15), what, "end"))
        width = (_LONGEST_BAR - 4) * share / longest
        parts.append(_rect((_BARS, y + 3), (max(width, 1), _ROW - 6), kind))
        parts.append(_text((_BARS + width + 6, y + 15), f"{percent:.1f} %  {span(us)}", "quiet"))
    return _svg(len(rows) * _ROW + 4, f"{phase.name}: the largest pieces", parts)

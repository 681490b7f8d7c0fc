"""A page for people to read and pass on: it fetches nothing, suits light, dark, wide and narrow screens.

What the pages of all commands share: the frame, a bar that is divided into stretches, and what its colours
mean. Words stand beside a bar, never in it: they keep their size where the bar becomes narrow.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

__all__ = ["EMPTY", "Stretch", "bar", "legend", "page"]

#: The colour of a bar's ground.
EMPTY = "empty"
_COLOURS = {
    "page": ("#ffffff", "#0d1117"),
    "text": ("#1f2328", "#e6edf3"),
    "quiet": ("#59636e", "#9198a1"),
    "line": ("#d1d9e0", "#3d444d"),
    EMPTY: ("#eaeef2", "#21262d"),
}
_STYLE = """
body { margin: 24px auto; max-width: 960px; padding: 0 16px; background: var(--page); color: var(--text);
  font: 14px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 20px; line-height: 1.3 } h2 { font-size: 16px; margin: 28px 0 4px } p { margin: 4px 0 }
svg { display: block; width: 100% } rect { shape-rendering: crispEdges }
.quiet { color: var(--quiet) }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 6px 0; padding: 0; list-style: none }
.legend svg { display: inline-block; width: 12px; margin-right: 5px; vertical-align: -1px }
"""
#: Units of length of a bar, however wide it is shown.
_LENGTH = 1000


@dataclass(frozen=True)
class Stretch:
    """A part of a bar.

    Parameters
    ----------
    start, end : of the bar's length, from 0 to 1
    kind : the name of its colour
    title : what is shown where a pointer rests on it
    """

    start: float
    end: float
    kind: str
    title: str = ""


def page(title: str, parts: Iterable[str], colours: Mapping[str, tuple[str, str]], style: str = "") -> str:
    """Return a page of HTML with all that it needs.

    Parameters
    ----------
    title : as text
    parts : what is on it, as HTML
    colours : of bars and marks, by name: on a light screen and on a dark one
    style : what is styled in this page alone, as CSS
    """
    shown = {**_COLOURS, **colours}
    light, dark = ("; ".join(f"--{name}: {pair[i]}" for name, pair in shown.items()) for i in (0, 1))
    fills = "\n".join(f".{name} {{ fill: var(--{name}) }}" for name in (EMPTY, *colours))
    head = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>",
        f":root {{ color-scheme: light dark; {light} }}",
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}",
        f"{_STYLE.strip()}\n{fills}{style.rstrip()}",
        "</style></head><body>",
    ]
    return "\n".join([*head, *parts, "</body></html>\n"])


def bar(stretches: Iterable[Stretch], height: int, description: str) -> str:
    """Return a bar as wide as there is room.

    Parameters
    ----------
    stretches : what is on it, from left to right
    height : in pixels
    description : what it shows, for those who do not see it
    """
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LENGTH} {height}" height="{height}"'
    told = f'preserveAspectRatio="none" role="img" aria-label="{escape(description, quote=True)}"'
    return "\n".join([f"{head} {told}>", *(_rect(stretch, height) for stretch in stretches), "</svg>"])


def _rect(stretch: Stretch, height: int) -> str:
    told = f"<title>{escape(stretch.title)}</title>" if stretch.title else ""
    place = f'x="{_LENGTH * stretch.start:.2f}" width="{_LENGTH * (stretch.end - stretch.start):.2f}"'
    return f'<rect {place} height="{height}" class="{stretch.kind}">{told}</rect>'


def legend(names: Mapping[str, str]) -> str:
    """Return what colours mean: words by the name of the colour."""
    entries = (
        f"<li>{bar([Stretch(0, 1, kind)], 12, kind)}{escape(name)}</li>" for kind, name in names.items()
    )
    return "\n".join(['<ul class="legend">', *entries, "</ul>"])

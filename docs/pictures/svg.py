"""A drawing as SVG text: lines, marks, boxes and words in colours that suit a light and a dark page."""

from collections.abc import Iterable
from html import escape

__all__ = ["Drawing"]

_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 13px }
.small { font-size: 11px; fill: #59636e }
.code { font-family: ui-monospace, monospace; font-size: 11px }
.grid { stroke: #d1d9e0 }
.axis { stroke: #59636e }
.goal { stroke: #59636e; stroke-dasharray: 4 3 }
.box { fill: #f6f8fa; stroke: #59636e }
.ours { stroke: #0969da; fill: #0969da }
.both { stroke: #8250df; fill: #8250df }
.theirs { stroke: #bc4c00; fill: #bc4c00 }
.control { stroke: #6e7781; fill: #6e7781 }
.line { fill: none; stroke-width: 1 }
.line.ours, .line.both, .line.theirs, .line.control { fill: none; stroke-width: 2 }
.band { stroke: none; opacity: .18 }
.band.solid { opacity: .85 }
.box.ours { fill: #ddf4ff }
rect.bar { stroke: none; shape-rendering: crispEdges }
.bar.off { fill: #eaeef2 }
.bar.guilty { fill: #1f2328 }
.box.theirs { fill: #fff1e5 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.small { fill: #9198a1 }
.grid { stroke: #3d444d }
.axis, .goal { stroke: #9198a1 }
.box { fill: #151b23; stroke: #9198a1 }
.ours { stroke: #58a6ff; fill: #58a6ff }
.both { stroke: #bc8cff; fill: #bc8cff }
.theirs { stroke: #f0883e; fill: #f0883e }
.control { stroke: #9198a1; fill: #9198a1 }
.line.ours, .line.both, .line.theirs, .line.control { fill: none }
.box.ours { fill: #0c2d6b }
.bar.off { fill: #21262d }
.bar.guilty { fill: #ffffff }
.box.theirs { fill: #4d2d00 }
}
"""
Point = tuple[float, float]


class Drawing:
    """A picture that grows by its methods; ``str`` is the file.

    Parameters
    ----------
    width, height : in pixels
    description : what it shows, for those who do not see it
    """

    def __init__(self, width: int, height: int, description: str) -> None:
        self._head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-label="{escape(description, quote=True)}">'
        )
        self._parts: list[str] = []

    def __str__(self) -> str:
        return "\n".join([self._head, f"<style>{_STYLE}</style>", *self._parts, "</svg>\n"])

    def text(self, at: Point, words: str, kind: str = "", anchor: str = "start") -> None:
        """Write words: ``start``, ``middle`` or ``end`` of them is there."""
        place = f'x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}"'
        self._parts.append(f"<text {place}{_kind(kind)}>{escape(words)}</text>")

    def line(self, points: Iterable[Point], kind: str) -> None:
        """Draw a line through points."""
        self._parts.append(f'<polyline points="{_points(points)}"{_kind(f"line {kind}")}/>')

    def band(self, points: Iterable[Point], kind: str) -> None:
        """Fill an area."""
        self._parts.append(f'<polygon points="{_points(points)}"{_kind(f"band {kind}")}/>')

    def dot(self, at: Point, kind: str, radius: float = 3.5) -> None:
        """Draw a filled circle."""
        self._parts.append(f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius}"{_kind(kind)}/>')

    def box(self, corner: Point, size: Point, kind: str = "") -> None:
        """Draw a rectangle with round corners."""
        place = f'x="{corner[0]:.1f}" y="{corner[1]:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}"'
        self._parts.append(f'<rect {place} rx="5"{_kind(f"box {kind}")}/>')

    def bar(self, corner: Point, size: Point, kind: str) -> None:
        """Fill a rectangle, which has no border."""
        place = f'x="{corner[0]:.1f}" y="{corner[1]:.1f}" width="{size[0]:.1f}" height="{size[1]:.1f}"'
        self._parts.append(f"<rect {place}{_kind(f'bar {kind}')}/>")

    def arrow(self, start: Point, end: Point) -> None:
        """Draw an arrow that goes straight down or to the right."""
        x, y = end
        is_down = abs(end[1] - start[1]) >= abs(end[0] - start[0])
        tip = [(x - 4, y - 7), end, (x + 4, y - 7)] if is_down else [(x - 7, y - 4), end, (x - 7, y + 4)]
        self.line([start, end], "axis")
        self.line(tip, "axis")


def _kind(names: str) -> str:
    return f' class="{names.strip()}"' if names.strip() else ""


def _points(points: Iterable[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)

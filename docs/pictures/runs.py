"""Pictures of a command's own run, from what it has written: the files ``*.json`` beside this one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docs.pictures.svg import Drawing

__all__ = ["RUNS"]

_BAR, _ROW, _TOP = (250.0, 310.0), 24, 74


def bisect() -> str:
    """Return the search of a bisection: what was on in each pass, and whether the numbers differed."""
    verdict = json.loads(Path(__file__).with_name("bisect.json").read_text(encoding="utf-8"))
    guilty = [culprit["name"] for culprit in verdict["culprits"]]
    steps = [step for step in verdict["steps"] if step["on"]]
    units = list(dict.fromkeys(unit for step in steps for unit in step["on"]))
    height = _TOP + _ROW * len(steps) + 34
    told = f"How sglang-fl bisect finds {' and '.join(guilty)} among {len(units)} ops, in {len(steps)} steps"
    drawing = Drawing(780, height, told)
    drawing.text((10, 20), told, "title")
    x = 10.0
    for kind, words in (
        ("ours", "on: the numbers agree, or no call is wrong"),
        ("theirs", "on: they differ, or a call is wrong"),
        ("guilty", "guilty"),
        ("off", "off"),
    ):
        drawing.bar((x, 38), (11, 11), kind)
        drawing.text((x + 16, 48), words, "small")
        x += 30 + 6.1 * len(words)
    for number, step in enumerate(steps):
        _row(drawing, _TOP + _ROW * number, step, units, guilty)
    source = "Source: docs/pictures/bisect.json: a tiny Qwen2 on a CPU, two mistakes planted, 2026-11-28"
    drawing.text((10, height - 10), source, "small")
    return str(drawing)


def _row(drawing: Drawing, y: float, step: dict[str, Any], units: list[str], guilty: list[str]) -> None:
    left, length = _BAR
    width = length / len(units)
    kind = "ours" if step["agrees"] else "theirs"
    drawing.text((10, y + 11), _short(step["what"]), "small")
    drawing.bar((left, y), (length, 14), "off")
    for number, unit in enumerate(units):
        if unit in step["on"]:
            is_guilty = unit in guilty and not step["agrees"]
            drawing.bar((left + number * width, y), (width, 14), "guilty" if is_guilty else kind)
    word = "" if step["distance"] is None else "agrees: " if step["agrees"] else "differs: "
    drawing.text((left + length + 10, y + 11), f"{word}{step['text'].partition(',')[0]}", "small")


def _short(what: str) -> str:
    """Return what is said of a step, in the room beside its bar."""
    return what if len(what) < 40 else f"{what[:36]} ..."


RUNS: dict[str, Callable[[], str]] = {"bisect": bisect}

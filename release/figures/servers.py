"""What of ``docs/benchmarks-engine.md`` is written from the tables of served models."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.lookup import MODELS, PREFILLS, REQUESTS, WORKLOADS, Served, served, told
from release.figures.markdown import MISSING, Cell, mean, number, said, span, table

__all__ = ["WITH_EXPERTS", "blocks", "cells", "ratios", "start_cells", "starts", "summary"]

#: Models with experts: their goals are others.
WITH_EXPERTS = ("Qwen3-30B-A3B", "DeepSeek-V2-Lite", "GLM-4.5-Air", "gpt-oss-20b", "Qwen3-Next-80B-A3B")
COLD, WARM, FIRST = "cold start-up (s)", "start-up (s)", "first generation (s)"
RATIO, ERROR = "ratio", "standard error of the ratio"


def blocks(folder: Path) -> dict[str, str]:
    """Return the tables of the page, by their marks."""
    models = served(folder)
    return {
        "server-summary": summary(models),
        "server-ratios": _sides(models),
        "server-rates": _rates(models),
        "server-starts": starts(models) + "\n" + _starts(models),
        "server-source": _source(models),
    }


def cells(models: Sequence[Served], workloads: Sequence[str] = tuple(WORKLOADS)) -> list[Cell]:
    """Return the ratios of the side with all of our kernels."""
    found = []
    for one in models:
        for figure in workloads:
            if row := one.row(figure, one.ours):
                where = f"{one.title} on SGLang {one.table.release}, {WORKLOADS[figure]}"
                found.append(Cell(float(row[RATIO]), where, float(row[ERROR])))
    return found


def summary(models: Sequence[Served]) -> str:
    """Say how served models stand."""
    requests = cells(models, REQUESTS)
    prompts = cells(models, PREFILLS)
    both = [*requests, *prompts]
    if not both:
        return "Not measured yet.\n"
    below = [one for one in both if one.ratio < 1]
    surely = [one for one in below if one.ratio + 2 * one.error < 1]
    least = min(both, key=lambda one: one.ratio)
    return said(
        f"With the plugin a server makes **{_range(requests)}** times the tokens a second of SGLang without",
        f"it, by model and number of requests, {_mean(requests)} in the geometric mean of {len(requests)}",
        f"cells; it computes prompts **{_range(prompts)}** times as fast, {_mean(prompts)} in the mean of",
        f"{len(prompts)} cells. Of all {len(both)} cells {len(below)} are below 1, {len(surely)} of them by",
        f"more than two standard errors; the least is {least.ratio:.3f} ({least.where};",
        f"error {least.error:.3f}).",
    )


def _range(cells: Sequence[Cell]) -> str:
    return span((one.ratio for one in cells), 3)


def _mean(cells: Sequence[Cell]) -> str:
    value = mean(cells)
    return MISSING if value is None else f"{value:.3f}"


def ratios(models: Sequence[Served]) -> str:
    """Return the table of all models by workload, of the side with all of our kernels."""
    rows: list[list[str]] = []
    for name in MODELS:
        of_name = [one for one in models if one.name == name]
        for one in of_name:
            is_same = bool(rows) and one.title in (row[0] for row in rows)
            cells = [_ratio(one, figure, one.ours, has_error=False) for figure in WORKLOADS]
            rows.append(["" if is_same else one.title, one.table.release, one.table.plugin, *cells])
        if not of_name:
            rows.append([name, MISSING, MISSING, *[MISSING] * len(WORKLOADS)])
    return table(["model", "SGLang", "plugin", *WORKLOADS.values()], rows)


def _sides(models: Sequence[Served]) -> str:
    """Return the ratio of each side and its standard error."""
    rows = []
    for one in models:
        for number_, side in enumerate(one.sides[1:]):
            head = "" if number_ else f"{one.title}, {one.table.release}"
            rows.append([head, _words(side), *(_ratio(one, figure, side) for figure in WORKLOADS)])
    return table(["model, SGLang", "side", *WORKLOADS.values()], rows)


def _words(side: str) -> str:
    """Return what a side is called on the page."""
    kind, _, orders = side.partition(":")
    name = {"layer2": "layer 2", "layers12": "layers 1 and 2", "control": "control: vanilla again"}.get(
        kind, kind
    )
    if not orders:
        return name
    pairs = [order.partition("=") for order in orders.split(";")]
    if all(choice == "sglang" for _, _, choice in pairs):
        return f"{name} without our {', '.join(f'`{op}`' for op, _, _ in pairs)}"
    return f"{name} with `{orders}`"


def _ratio(one: Served, figure: str, side: str | None, *, has_error: bool = True) -> str:
    """Return a ratio, and in brackets its error; in bold where it is below 1 by more than two of these."""
    row = one.row(figure, side)
    if row is None:
        return MISSING
    value, error = float(row[RATIO]), float(row[ERROR])
    text = f"**{value:.3f}**" if value + 2 * error < 1 else f"{value:.3f}"
    return f"{text} ({error:.3f})" if has_error else text


def _rates(models: Sequence[Served]) -> str:
    """Return tokens a second, vanilla's and ours."""
    rows = [
        [f"{one.title}, {one.table.release}", *(_both(one, figure) for figure in WORKLOADS)] for one in models
    ]
    return table(["model, SGLang", *WORKLOADS.values()], rows)


def _both(one: Served, figure: str) -> str:
    medians = [_median(one, figure, side) for side in ("vanilla", one.ours)]
    return " / ".join(MISSING if value is None else f"{value:,.0f}" for value in medians)


def _median(one: Served, figure: str, side: str | None) -> float | None:
    row = one.row(figure, side)
    return number(row, "median") if row else None


def start_cells(models: Sequence[Served], figure: str) -> list[tuple[float, float]]:
    """Return vanilla's seconds and ours of each model that has both."""
    pairs = [(_median(one, figure, "vanilla"), _median(one, figure, one.ours)) for one in models]
    return [(theirs, own) for theirs, own in pairs if theirs is not None and own is not None]


def starts(models: Sequence[Served]) -> str:
    """Say how long a start takes."""
    sentences = []
    for figure, words in (
        (COLD, "With empty caches of compiled kernels a start takes"),
        (WARM, "later ones take"),
    ):
        if pairs := start_cells(models, figure):
            share = span(own / theirs for theirs, own in pairs)
            sentences.append(f"{words} {share} of vanilla's {span((theirs for theirs, _ in pairs), 0)} s")
    return said("; ".join(sentences) + "." if sentences else "Not measured yet.")


def _starts(models: Sequence[Served]) -> str:
    heads = {COLD: "cold start", WARM: "warm start", FIRST: "first generation"}
    rows = []
    for one in models:
        pairs = [[_median(one, figure, side) for side in ("vanilla", one.ours)] for figure in heads]
        if any(value is not None for pair in pairs for value in pair):
            texts = [
                " / ".join(MISSING if value is None else f"{value:.1f}" for value in pair) for pair in pairs
            ]
            rows.append([f"{one.title}, {one.table.release}", *texts])
    return table(["model, SGLang", *(f"{head} (s)" for head in heads.values())], rows)


def _source(models: Sequence[Served]) -> str:
    """Say how it was measured, and where the files lie."""
    if not models:
        return "Not measured yet.\n"
    files = "`benchmarks/results/bench_engine_h200_sglang-RELEASE_MODEL.csv`"
    return said(
        f"{told(one.table for one in models)}. Data: {files}, whose first line has the command and SGLang's",
        "arguments; a `.json` beside it holds every figure.",
    )

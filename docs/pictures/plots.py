"""Plots of what was measured, each from files under ``benchmarks/results`` that it names below itself."""

import math
import statistics
import textwrap
from collections.abc import Callable, Sequence

from benchmarks.lookup import (
    REQUESTS,
    RESULTS,
    WORKLOADS,
    Served,
    Table,
    newest,
    newest_served,
    read,
    served,
    told,
)
from benchmarks.tables import Row
from docs.pictures.steps import steps
from docs.pictures.svg import Drawing

__all__ = ["PLOTS", "RESULTS"]


def _op(name: str) -> Table:
    """Return the newest table of an op."""
    table = newest("bench_ops", name)
    if table is None:
        raise SystemExit(f"benchmarks/results: there is no table of {name}")
    return table


def _legend(drawing: Drawing, at: tuple[float, float], entries: Sequence[tuple[str, str]]) -> None:
    x, y = at
    for kind, words in entries:
        drawing.dot((x, y - 4), kind)
        drawing.text((x + 9, y), words)
        x += 26 + 6.6 * len(words)


#: The ops that move memory and compute little, by the parts of ``bench_ops``.
KERNELS = {
    "silu_and_mul": "silu_and_mul",
    "rms_norm": "rms_norm",
    "fused_add_rms_norm": "rms_norm with residual",
    "rotary_embedding": "rotary_embedding",
    "layer_norm": "layer_norm",
}
_COPY = {"ours": "flagos (µs)", "theirs": "sglang (µs)"}


def kernels() -> str:
    """Return our kernels and SGLang's own against a device copy of as many bytes."""
    tables = [_op(part) for part in KERNELS]
    rows = [row for table in tables for row in table.rows]
    tokens = sorted({int(row["tokens"]) for row in rows})
    drawing = Drawing(780, 540, "Kernels against a copy of as many bytes, by number of tokens, on an H200")
    drawing.text(
        (10, 20), "Speed of a kernel beside a copy of as many bytes (1 = as fast as the copy)", "title"
    )
    _legend(drawing, (14, 42), [("ours", "our Triton kernels"), ("theirs", "SGLang's own CUDA kernels")])
    drawing.text((420, 42), "line: median of 4 models' widths; band: least to most", "small")
    for i, op in enumerate(KERNELS.values()):
        left, top = 50 + 255 * (i % 3), 70 + 225 * (i // 3)

        def place(count: int, ratio: float, left: float = left, top: float = top) -> tuple[float, float]:
            x = left + 205 * math.log(count / tokens[0]) / math.log(tokens[-1] / tokens[0])
            return x, top + 150 - 150 * ratio / 1.6

        drawing.text((left, top - 6), op, "code")
        for ratio in (0.0, 0.5, 1.0, 1.5):
            kind = "goal" if ratio == 1 else "grid"
            drawing.line([place(tokens[0], ratio), place(tokens[-1], ratio)], kind)
            drawing.text((left - 6, place(1, ratio)[1] + 4), f"{ratio:g}", "small", "end")
        for count in (1, 16, 256, 4096):
            drawing.text((place(count, 0)[0], top + 166), str(count), "small", "middle")
        drawing.text((left + 102, top + 182), "tokens; up: speed / copy", "small", "middle")
        for kind, column in _COPY.items():
            found = [
                [float(r["copy (µs)"]) / float(r[column]) for r in rows if _is(r, op, n)] for n in tokens
            ]
            high = [place(n, max(ratios)) for n, ratios in zip(tokens, found, strict=True)]
            low = [place(n, min(ratios)) for n, ratios in zip(tokens, found, strict=True)]
            drawing.band([*high, *reversed(low)], kind)
            middle = [place(n, statistics.median(r)) for n, r in zip(tokens, found, strict=True)]
            drawing.line(middle, kind)
    _source(drawing, 500, "bench_ops_*.csv", tables)
    return str(drawing)


def _is(row: Row, op: str, tokens: int) -> bool:
    return row["op"] == op and int(row["tokens"]) == tokens


#: What the plots of served models show, for those who do not see them and for those who do.
_SERVED = "Served models: tokens a second with the plugin, divided by those without it"
_RATIO = "Tokens a second with the plugin / without it (above 1 the plugin is faster)"
#: Dense models, which have a panel for each release; all others are in the other picture.
_DENSE = ("Llama-3-8B", "Qwen2.5-0.5B")


def engine() -> str:
    """Return the ratio of served models with the plugin to those without it, with error bars and controls."""
    return _served([one for one in served() if one.name in _DENSE], (0.9, 1.0, 1.1))


def families() -> str:
    """Return the same of models with experts, with linear attention, and with norms of query and key."""
    others = {one.name: one for one in served() if one.name not in _DENSE}  # of each the newest release
    return _served(list(others.values()), (1.0, 1.2, 1.4, 1.6, 1.8))


def _served(models: Sequence[Served], ratios: Sequence[float]) -> str:
    bottom = 75 + 205 * math.ceil(len(models) / 2)
    drawing = Drawing(780, bottom + 45, _SERVED)
    drawing.text((10, 20), _RATIO, "title")
    _legend(drawing, (14, 42), [("ours", "with the plugin"), ("control", "control: vanilla once more")])
    drawing.text((440, 42), "bar: standard error of the ratio", "small")
    for i, one in enumerate(models):
        _panel(drawing, (125 + 385 * (i % 2), 75 + 205 * (i // 2)), one, ratios)
    _source(drawing, bottom, "bench_engine_*.csv", [one.table for one in models])
    return str(drawing)


def _panel(drawing: Drawing, corner: tuple[float, float], one: Served, ratios: Sequence[float]) -> None:
    left, top = corner
    step = ratios[1] - ratios[0]
    least, most = ratios[0] - 0.65 * step, ratios[-1] + 0.65 * step

    def x(ratio: float) -> float:
        return left + 250 * (min(max(ratio, least), most) - least) / (most - least)

    drawing.text((left - 110, top - 8), f"{one.title} ({one.table.release})", "title")
    for ratio in ratios:
        drawing.line([(x(ratio), top), (x(ratio), top + 140)], "goal" if ratio == 1 else "grid")
        drawing.text((x(ratio), top + 156), f"{ratio:.2f}", "small", "middle")
    for number, (figure, name) in enumerate(WORKLOADS.items()):
        y = top + 16 + 27 * number
        drawing.text((left - 8, y + 4), name, "small", "end")
        sides = {"ours": one.row(figure, one.ours), "control": one.row(figure, "control")}
        found = {kind: row for kind, row in sides.items() if row}
        if not found:
            drawing.text((x(1) + 8, y + 4), "not measured", "small")
        for place, (kind, row) in enumerate(found.items()):
            at = y + 5.5 * (place - (len(found) - 1) / 2)
            ratio, error = float(row["ratio"]), float(row["standard error of the ratio"])
            drawing.line([(x(ratio - error), at), (x(ratio + error), at)], kind)
            drawing.dot((x(ratio), at), kind, 2.8)


#: The loads of the plot for the README, each with the colour of its dots.
_LOADS = dict(zip(("ours", "both", "theirs"), REQUESTS, strict=True))


def servers() -> str:
    """Return what a server gains with each model at three loads, on the newest release that served it."""
    models = newest_served()
    bottom = 66 + 26 * len(models)
    drawing = Drawing(780, bottom + 72, _SERVED)
    drawing.text((10, 20), _RATIO, "title")
    _legend(drawing, (14, 42), [(kind, WORKLOADS[load]) for kind, load in _LOADS.items()])
    drawing.text((440, 42), "bar: standard error of the ratio", "small")

    def x(ratio: float) -> float:
        return 300 + 460 * (ratio - 0.9) / 0.6

    for ratio in (0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5):
        drawing.line([(x(ratio), 58), (x(ratio), bottom)], "goal" if ratio == 1 else "grid")
        drawing.text((x(ratio), bottom + 16), f"{ratio:.1f}", "small", "middle")
    for number, one in enumerate(models):
        y = 74 + 26 * number
        drawing.text((290, y + 4), one.title, "", "end")
        for place, (kind, load) in enumerate(_LOADS.items()):
            if row := one.row(load, one.ours):
                at, ratio = y + 7 * (place - 1), float(row["ratio"])
                error = float(row["standard error of the ratio"])
                ends = (min(max(ratio + way * error, 0.9), 1.5) for way in (-1, 1))
                drawing.line([(x(end), at) for end in ends], kind)
                drawing.dot((x(ratio), at), kind, 3)
    _source(drawing, bottom + 36, "bench_engine_*.csv", [one.table for one in models])
    return str(drawing)


def experts() -> str:
    """Return our kernels for experts against SGLang's own, by the number of tokens."""
    table = _op("fused_moe")
    rows = table.rows
    drawing = Drawing(780, 485, "Time of SGLang's own experts divided by that of ours, by number of tokens")
    drawing.text((10, 20), "Experts: time of SGLang's own / ours (above 1 ours is faster)", "title")
    drawing.text((480, 20), "all launches of a layer, alone; not in a server", "small")
    for i, shape in enumerate(dict.fromkeys(row["shape"] for row in rows)):
        left, top = 40 + 187 * (i % 4), 60 + 200 * (i // 4)

        def place(tokens: int, ratio: float, left: float = left, top: float = top) -> tuple[float, float]:
            return left + 150 * math.log2(tokens) / 12, top + 130 - 130 * (ratio - 0.8) / 1.2

        drawing.text((left, top - 10), shape.rsplit(" ", 3)[0], "code")
        for ratio in (1.0, 1.5, 2.0):
            kind = "goal" if ratio == 1 else "grid"
            drawing.line([place(1, ratio), place(4096, ratio)], kind)
            drawing.text((left - 6, place(1, ratio)[1] + 4), f"{ratio:g}", "small", "end")
        for tokens in (1, 16, 256, 4096):
            drawing.text((place(tokens, 0.8)[0], top + 146), str(tokens), "small", "middle")
        drawing.text((left + 75, top + 162), "tokens", "small", "middle")
        of_shape = [row for row in rows if row["shape"] == shape]
        drawing.line([place(int(r["tokens"]), float(r["sglang / flagos"])) for r in of_shape], "ours")
    _source(drawing, 440, table.path.name, [table])
    return str(drawing)


def attention() -> str:
    """Return our decode attention against SGLang's own, by the length of the sequences."""
    table = _op("decode_attention")
    cells: dict[str, dict[tuple[int, int], float]] = {}
    for row in table.rows:
        shape, _, length = row["shape"].partition(" context ")
        at = int(length), int(row["tokens"])
        cells.setdefault(shape, {})[at] = float(row["sglang / flagos"])
    drawing = Drawing(780, 490, "Time of SGLang's Triton decode attention divided by that of ours")
    drawing.text((10, 20), "Decode attention: time of SGLang's own / ours (above 1 ours is faster)", "title")
    drawing.text((540, 20), "a line for 1, 4, 16 and 64 sequences", "small")
    for i, (shape, ratios) in enumerate(cells.items()):
        left, top = 40 + 187 * (i % 4), 60 + 200 * (i // 4)

        def place(context: int, ratio: float, left: float = left, top: float = top) -> tuple[float, float]:
            across = (math.log2(context) - 9) / 6
            return left + 122 * across, top + 130 - 130 * (math.log2(ratio) + 0.3) / 4.8

        drawing.text((left, top - 10), shape, "code")
        for ratio in (1, 2, 4, 8, 16):
            drawing.line([place(512, ratio), place(32768, ratio)], "goal" if ratio == 1 else "grid")
            drawing.text((left - 6, place(512, ratio)[1] + 4), f"{ratio}", "small", "end")
        for context in (512, 4096, 32768):
            drawing.text((place(context, 1)[0], top + 146), str(context), "small", "middle")
        drawing.text((left + 61, top + 162), "tokens of each", "small", "middle")
        ends = []
        for sequences in dict.fromkeys(number for _, number in ratios):
            points = [place(context, ratios[context, n]) for context, n in ratios if n == sequences]
            drawing.line(points, "ours")
            ends.append((points[-1], str(sequences)))
        lowest = math.inf  # labels go up from there, so that none covers another
        for (x, y), label in sorted(ends, key=lambda end: -end[0][1]):
            lowest = min(y + 4, lowest - 10)
            drawing.text((x + 4, lowest), label, "small")
    _source(drawing, 448, table.path.name, [table])
    return str(drawing)


def dispatch() -> str:
    """Return the cost of a call's way through the plugin, by layer."""
    table = read(RESULTS / "bench_dispatch.csv")
    rows = table.rows
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    drawing = Drawing(
        780, 140 + 24 * len(layers), "Time of a layer's call with the plugin, divided by that without it"
    )
    drawing.text(
        (10, 20),
        "Time of a layer's call with the plugin / without it (below 1 the plugin is faster)",
        "title",
    )
    _legend(
        drawing, (14, 42), [("ours", "the op's reference runs"), ("theirs", "a kernel that returns at once")]
    )
    drawing.text((420, 42), "bar: quartiles of the rounds; dashed: 1, and the goal 1.02", "small")

    def x(ratio: float) -> float:
        return 200 + 540 * (ratio - 0.5) / 0.6

    bottom = 62 + 24 * len(layers)
    for ratio in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1):
        drawing.line([(x(ratio), 56), (x(ratio), bottom)], "goal" if ratio == 1 else "grid")
        drawing.text((x(ratio), bottom + 16), f"{ratio:.1f}", "small", "middle")
    drawing.line([(x(1.02), 56), (x(1.02), bottom)], "goal")
    for number, layer in enumerate(layers):
        y = 70 + 24 * number
        drawing.text((190, y + 4), layer, "code", "end")
        for row in (row for row in rows if row["layer"] == layer):
            kind, at = ("ours", y - 4) if row["kernel"] == "reference" else ("theirs", y + 4)
            drawing.line([(x(float(row["quartile 1"])), at), (x(float(row["quartile 3"])), at)], kind)
            drawing.dot((x(float(row["ratio"])), at), kind, 3)
    _source(drawing, bottom + 36, "bench_dispatch.csv", [table])
    return str(drawing)


def _source(drawing: Drawing, y: float, name: str, tables: Sequence[Table]) -> None:
    """Say below a plot which files it is drawn from, and how they were measured."""
    drawing.text((10, y), f"Source: benchmarks/results/{name}:", "small")
    for number, line in enumerate(textwrap.wrap(told(tables), 125), start=1):
        drawing.text((10, y + 15 * number), line, "small")


#: The plots by the names of their files.
PLOTS: dict[str, Callable[[], str]] = {
    "kernels": kernels,
    "servers": servers,
    "engine": engine,
    "families": families,
    "experts": experts,
    "attention": attention,
    "dispatch": dispatch,
    "steps": steps,
}

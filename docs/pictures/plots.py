"""Plots of what was measured, each from files under ``benchmarks/results`` that it names below itself."""

import csv
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from docs.pictures.steps import steps
from docs.pictures.svg import Drawing

__all__ = ["PLOTS"]

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
Row = dict[str, str]


def _read(name: str) -> list[Row]:
    """Return the rows of a file; the first line says how it was measured."""
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        next(file)
        return list(csv.DictReader(file))


def _legend(drawing: Drawing, at: tuple[float, float], entries: Sequence[tuple[str, str]]) -> None:
    x, y = at
    for kind, words in entries:
        drawing.dot((x, y - 4), kind)
        drawing.text((x + 9, y), words)
        x += 26 + 6.6 * len(words)


#: The ops that move memory and compute little.
KERNELS = ("silu_and_mul", "rms_norm", "rms_norm with residual", "rotary_embedding", "layer_norm")
_COPY = {"ours": "flagos (µs)", "theirs": "sglang (µs)"}


def kernels() -> str:
    """Return our kernels and SGLang's own against a device copy of as many bytes."""
    rows = _read("bench_ops_h200_sglang-0.5.17.csv")
    tokens = sorted({int(row["tokens"]) for row in rows})
    drawing = Drawing(780, 525, "Kernels against a copy of as many bytes, by number of tokens, on an H200")
    drawing.text(
        (10, 20), "Speed of a kernel beside a copy of as many bytes (1 = as fast as the copy)", "title"
    )
    _legend(drawing, (14, 42), [("ours", "our Triton kernels"), ("theirs", "SGLang's own CUDA kernels")])
    drawing.text((420, 42), "line: median of 4 models' widths; band: least to most", "small")
    for i, op in enumerate(KERNELS):
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
    _source(
        drawing,
        510,
        "bench_ops_h200_sglang-0.5.17.csv: NVIDIA H200, SGLang 0.5.17, bfloat16, CUDA graphs; 2026-11-26",
    )
    return str(drawing)


def _is(row: Row, op: str, tokens: int) -> bool:
    return row["op"] == op and int(row["tokens"]) == tokens


_WORKLOADS = {
    "1 request, 512 in, 128 out": "1 request",
    "16 requests, 512 in, 128 out": "16 requests",
    "64 requests, 512 in, 128 out": "64 requests",
    "prefill of 16 x 1024": "prefill 16 x 1024",
    "prefill of 1 x 512": "prefill 1 x 512",
}
#: A panel for each, with the files of its rounds.
_SERVED = (
    ("Llama-3-8B, SGLang 0.5.17", ("0.5.17_Llama-3-8B_attention",)),
    ("Llama-3-8B, SGLang 0.5.23", ("0.5.23_Llama-3-8B_attention",)),
    ("Qwen2.5-0.5B, SGLang 0.5.17", ("0.5.17_Qwen2.5-0.5B",)),
    ("Qwen2.5-0.5B, SGLang 0.5.23", ("0.5.23_Qwen2.5-0.5B", "0.5.23_Qwen2.5-0.5B_control")),
)
#: Models of other families, some of their layers left.
_FAMILIES = (
    ("Qwen3-8B, 18 layers", ("0.5.23_Qwen3-8B-18L",)),
    ("Gemma-3-4B", ("0.5.23_Gemma-3-4B",)),
    ("Qwen3-30B-A3B, 10 layers", ("0.5.23_Qwen3-30B-A3B-10L_attention",)),
    ("DeepSeek-V2-Lite, 10 layers", ("0.5.23_DeepSeek-V2-Lite-10L_attention",)),
    ("GLM-4.5-Air, 4 layers", ("0.5.23_GLM-4.5-Air-4L",)),
    ("gpt-oss-20b, 8 layers", ("0.5.23_gpt-oss-20b-8L",)),
    ("Qwen3-Next-80B-A3B, 4 layers", ("0.5.23_Qwen3-Next-80B-A3B-4L_chunks",)),
)
_SIDES = {
    "layer2": "ours",
    "layer2:fused_moe=flagos;qk_norm_rope=flagos": "ours",
    "layer2:fused_moe=flagos;qk_norm_rope=flagos;rotary_embedding=impl:flagos.kv_cache": "ours",
    "layer2:decode_attention=flagos;extend_attention=flagos": "ours",
    "layer2:chunk_gated_delta_rule=flagos": "ours",
    "layers12": "both",
    "control": "control",
}


def engine() -> str:
    """Return the ratio of served models with the plugin to those without it, with error bars and controls."""
    drawing = Drawing(780, 485, "Served models: tokens a second with the plugin, divided by those without it")
    entries = [("ours", "layer 2"), ("both", "layers 1 and 2"), ("control", "control: vanilla once more")]
    _served(drawing, entries, _SERVED, (0.95, 1.0, 1.05, 1.1))
    _source(drawing, 463, "bench_engine_h200_sglang-*.csv: NVIDIA H200, torch 2.11.0, triton 3.6.0;")
    measured = "2026-11-26, Qwen2.5-0.5B on 0.5.23 on two machines; 2026-11-28, Llama-3-8B"
    _source(drawing, 478, f"{measured} with our attention", "")
    return str(drawing)


def families() -> str:
    """Return the same of models with experts, with linear attention, and with norms of query and key."""
    drawing = Drawing(
        780, 895, "Other families: tokens a second with the plugin, divided by those without it"
    )
    entries = [("ours", "layer 2"), ("control", "control: vanilla once more")]
    _served(drawing, entries, _FAMILIES, (1.0, 1.2, 1.4, 1.6))
    _source(drawing, 873, "bench_engine_h200_sglang-0.5.23_*.csv: NVIDIA H200, SGLang 0.5.23,")
    _source(drawing, 888, "torch 2.11.0, triton 3.6.0, one round each, 2026-11-28", "")
    return str(drawing)


def _served(
    drawing: Drawing,
    entries: Sequence[tuple[str, str]],
    panels: Sequence[tuple[str, Sequence[str]]],
    ratios: Sequence[float],
) -> None:
    drawing.text(
        (10, 20), "Tokens a second with the plugin / without it (above 1 the plugin is faster)", "title"
    )
    _legend(drawing, (14, 42), entries)
    drawing.text((440, 42), "bar: standard error of the ratio", "small")
    for i, (title, files) in enumerate(panels):
        left, top = 125 + 385 * (i % 2), 75 + 205 * (i // 2)
        _panel(
            drawing, (left, top), title, [f"bench_engine_h200_sglang-{file}.csv" for file in files], ratios
        )


def _panel(
    drawing: Drawing, corner: tuple[float, float], title: str, files: Sequence[str], ratios: Sequence[float]
) -> None:
    left, top = corner
    step = ratios[1] - ratios[0]
    least, most = ratios[0] - 0.65 * step, ratios[-1] + 0.65 * step

    def x(ratio: float) -> float:
        return left + 250 * (min(max(ratio, least), most) - least) / (most - least)

    drawing.text((left - 110, top - 8), title, "title")
    for ratio in ratios:
        drawing.line([(x(ratio), top), (x(ratio), top + 140)], "goal" if ratio == 1 else "grid")
        drawing.text((x(ratio), top + 156), f"{ratio:.2f}", "small", "middle")
    for number, (figure, name) in enumerate(_WORKLOADS.items()):
        y = top + 16 + 27 * number
        drawing.text((left - 8, y + 4), name, "small", "end")
        found = [row for file in files for row in _sides(file, figure)]
        if not found:
            drawing.text((x(1) + 8, y + 4), "not measured", "small")
        for place, row in enumerate(found):
            at = y + 5.5 * (place - (len(found) - 1) / 2)
            ratio, error = float(row["ratio"]), float(row["standard error of the ratio"])
            drawing.line([(x(ratio - error), at), (x(ratio + error), at)], _SIDES[row["side"]])
            drawing.dot((x(ratio), at), _SIDES[row["side"]], 2.8)


def _sides(file: str, figure: str) -> list[dict[str, str]]:
    """Return the rows to draw; of several sides of one kind, which add one default to another, the last."""
    rows = [row for row in _read(file) if row["figure"] == figure and row["side"] in _SIDES]
    return list({_SIDES[row["side"]]: row for row in rows}.values())


def experts() -> str:
    """Return our kernels for experts against SGLang's own, by the number of tokens."""
    name = "bench_ops_h200_sglang-0.5.23_fused_moe.csv"
    rows = _read(name)
    drawing = Drawing(780, 470, "Time of SGLang's own experts divided by that of ours, by number of tokens")
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
    _source(drawing, 440, f"{name}:")
    _source(drawing, 455, "NVIDIA H200, SGLang 0.5.23, bfloat16, CUDA graphs; 2026-11-28", "")
    return str(drawing)


def attention() -> str:
    """Return our decode attention against SGLang's own, by the length of the sequences."""
    name = "bench_ops_h200_sglang-0.5.23_decode_attention.csv"
    cells: dict[str, dict[tuple[int, int], float]] = {}
    for row in _read(name):
        shape, _, length = row["shape"].partition(" context ")
        at = int(length), int(row["tokens"])
        cells.setdefault(shape, {})[at] = float(row["sglang / flagos"])
    drawing = Drawing(780, 475, "Time of SGLang's Triton decode attention divided by that of ours")
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
    _source(drawing, 448, f"{name}:")
    _source(drawing, 463, "NVIDIA H200, SGLang 0.5.23, bfloat16, CUDA graphs; 2026-11-28", "")
    return str(drawing)


def dispatch() -> str:
    """Return the cost of a call's way through the plugin, by layer."""
    rows = _read("bench_dispatch.csv")
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    drawing = Drawing(
        780, 110 + 24 * len(layers), "Time of a layer's call with the plugin, divided by that without it"
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
    words = "bench_dispatch.csv: SGLang 0.5.23, torch 2.14.1, 2-core x86_64, one row on the CPU; 2026-11-28"
    _source(drawing, bottom + 36, words)
    return str(drawing)


def _source(drawing: Drawing, y: float, words: str, head: str = "Source: benchmarks/results/") -> None:
    drawing.text((10, y), f"{head}{words}", "small")


#: The plots by the names of their files.
PLOTS: dict[str, Callable[[], str]] = {
    "kernels": kernels,
    "engine": engine,
    "families": families,
    "experts": experts,
    "attention": attention,
    "dispatch": dispatch,
    "steps": steps,
}

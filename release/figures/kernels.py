"""What of ``docs/benchmarks-kernels.md`` is written from the tables of kernels and of dispatch."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.lookup import Table, newest, read
from benchmarks.tables import Row
from benchmarks.workloads import EXPERTS, PROMPTS, REQUESTS, Experts
from release.figures.markdown import (
    MISSING,
    cell,
    cells_of,
    mean,
    number,
    ratio,
    said,
    source,
    span,
    summary,
    table,
)

__all__ = ["CACHE", "PROMPT_OPS", "SMALL", "STEP_OPS", "blocks", "bounds", "dispatch", "op", "rows_of"]

#: Parts of ``bench_ops``: what moves memory and computes little, and routers.
SMALL = ("silu_and_mul", "rms_norm", "fused_add_rms_norm", "rotary_embedding", "layer_norm", "routing")
CACHE = ("qk_norm_rope", "rotary_embedding_with_cache")
STEP_OPS = (
    "fused_recurrent_gated_delta_rule_packed_decode",
    "fused_sigmoid_gating_delta_rule_update",
    "causal_conv1d_update",
)
PROMPT_OPS = ("chunk_gated_delta_rule", "causal_conv1d_fn")
#: Bytes a second that an H200 reads at.
BANDWIDTH = 4.2e12
#: From here on a copy is bound by the memory, not by its launch.
MANY = 4096


def blocks(folder: Path) -> dict[str, str]:
    """Return the tables of the page, by their marks."""
    small, cache = _ops(SMALL, folder), _ops(CACHE, folder)
    experts, step = op("fused_moe", folder), newest("bench_step", folder=folder)
    linear, prompts = _ops(STEP_OPS, folder), _ops(PROMPT_OPS, folder)
    exact = newest("bench_exactness", folder=folder)
    return {
        "small": _section("SGLang's CUDA kernels", small, _small(small)),
        "small-others": _others(small),
        "cache": _section("SGLang's own", cache, _by_shape(cache)),
        "experts": _section("SGLang's own", [experts], _experts(experts)),
        "linear": _section("SGLang's own", linear, _linear(linear)),
        "linear-prompts": _section("SGLang's own", prompts, _prompts(prompts)),
        "step": _step(step) + "\n" + source([step]),
        "exactness": _exactness(exact) + "\n" + source([exact]),
        "dispatch": dispatch(folder) + "\n" + _dispatch(folder),
    }


def op(part: str, folder: Path) -> Table | None:
    """Return the newest table of an op."""
    return newest("bench_ops", part, folder)


def _ops(parts: Iterable[str], folder: Path) -> list[Table | None]:
    return [op(part, folder) for part in parts]


def rows_of(tables: Iterable[Table | None]) -> list[Row]:
    """Return the rows of all tables that are there."""
    return [row for one in tables if one for row in one.rows]


def _section(other: str, tables: Sequence[Table | None], text: str) -> str:
    """Return a table as Markdown between a sentence that sums it up and one that says where it is from."""
    words = said(f"Time of {other} by ours: {summary(cells_of(rows_of(tables)))}.")
    return "\n".join([words, text, source(tables)])


def _by_op(tables: Iterable[Table | None]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows_of(tables):
        found.setdefault(row["op"], []).append(row)
    return found


def _many(rows: Iterable[Row]) -> str:
    """Return the speed beside a copy where there are many tokens."""
    return span(ratio(row, "copy (µs)") for row in rows if int(row["tokens"]) >= MANY)


def _small(tables: Iterable[Table | None]) -> str:
    lines = []
    for name, rows in _by_op(tables).items():
        cells = cells_of(rows)
        least = min(cells, key=lambda one: one.ratio)
        below = f"{sum(one.ratio < 1 for one in cells)} of {len(cells)}"
        lines.append([_code(name), cell(mean(cells)), cell(least.ratio), least.where, below, _many(rows)])
    heads = ("op", "geometric mean", "least", "where", "cells below 1", f"a copy, from {MANY} tokens on")
    return table(heads, lines)


def _code(name: str) -> str:
    """Return an op's name as code, without what is said behind it."""
    first, _, rest = name.partition(" ")
    return f"`{first}` {rest}".strip()


def _others(tables: Iterable[Table | None]) -> str:
    lines = []
    for name, rows in _by_op(tables).items():
        beside = [
            cell(mean(cells_of(rows, f"{side} (µs)")), 2) for side in ("flag_gems", "torch.compile", "liger")
        ]
        hosts = [span((number(row, f"host {side} (µs)") for row in rows), 1) for side in ("flagos", "sglang")]
        lines.append([_code(name), *beside, *hosts])
    heads = (
        "op",
        "FlagGems",
        "`torch.compile`",
        "Liger",
        "host time of a call, ours (µs)",
        "SGLang's own (µs)",
    )
    return table(heads, lines)


def _by_shape(tables: Iterable[Table | None]) -> str:
    lines = []
    for name, rows in _by_op(tables).items():
        for shape in dict.fromkeys(row["shape"] for row in rows):
            of_shape = [row for row in rows if row["shape"] == shape]
            cells = cells_of(of_shape)
            least = min(cells, key=lambda one: one.ratio)
            where = least.where.removeprefix(f"{shape}, ")
            lines.append(
                [_code(name), shape, cell(mean(cells)), f"{cell(least.ratio)} ({where})", _many(of_shape)]
            )
    return table(("op", "shape", "geometric mean", "least", f"a copy, from {MANY} tokens on"), lines)


def bounds(experts: Table | None) -> list[tuple[Experts, int, float]]:
    """Return for each cell the share of the memory's speed at which the weights are read that it touches."""
    found = []
    for shape in EXPERTS:
        for row in _of_shape(experts, shape):
            tokens = int(row["tokens"])
            touched = shape.experts * (1 - (1 - shape.top_k / shape.experts) ** tokens)  # on average
            read_at_best = touched * 3 * shape.hidden * shape.intermediate * 2 / BANDWIDTH * 1e6
            found.append((shape, tokens, read_at_best / float(row["flagos (µs)"])))
    return found


def _of_shape(experts: Table | None, shape: Experts) -> list[Row]:
    name = f"{shape.name} {shape.top_k} of {shape.experts}"
    return [row for row in rows_of([experts]) if row["shape"] == name]


def _experts(experts: Table | None) -> str:
    groups = ((1, 1), (2, 16), (32, 256), (512, 4096))
    shares = bounds(experts)
    lines = []
    for shape in EXPERTS:
        rows = _of_shape(experts, shape)
        cells = cells_of(rows)
        means = [
            cell(mean(cells_of(row for row in rows if low <= int(row["tokens"]) <= high)))
            for low, high in groups
        ]
        size = f"{shape.top_k} of {shape.experts}, {shape.hidden} x {shape.intermediate}"
        least = cell(min((one.ratio for one in cells), default=None))
        one, few = (
            cell(min((share for of, n, share in shares if of is shape and low <= n <= high), default=None), 2)
            for low, high in groups[:2]
        )
        lines.append([shape.name, size, *means, cell(mean(cells)), least, one.strip("*"), few.strip("*")])
    heads = ("experts", "shape", "1 token", "2 to 16", "32 to 256", "512 to 4096", "all", "least")
    return table((*heads, "bound, 1 token", "bound, least of 2 to 16"), lines)


def _linear(tables: Iterable[Table | None]) -> str:
    lines = []
    for name, rows in _by_op(tables).items():
        for shape in dict.fromkeys(row["shape"] for row in rows):
            of_shape = {int(row["tokens"]): row for row in rows if row["shape"] == shape}
            cells = [
                cell(ratio(of_shape[requests], "sglang (µs)")) if requests in of_shape else MISSING
                for requests in REQUESTS
            ]
            lines.append([_code(name), shape, *cells, cell(mean(cells_of(of_shape.values())))])
    heads = ("op", "heads", *(f"{n} request{'s' * (n > 1)}" for n in REQUESTS), "geometric mean")
    return table(heads, lines)


def _prompts(tables: Iterable[Table | None]) -> str:
    lines = []
    for name, rows in _by_op(tables).items():
        shapes = dict.fromkeys(row["shape"].rpartition(", ")[0] for row in rows)
        by_shape = {row["shape"]: row for row in rows}
        for shape in shapes:
            cells = []
            for prompts, length in PROMPTS:
                row = by_shape.get(f"{shape}, {prompts} x {length}")
                if row is None:
                    cells.append(MISSING)
                    continue
                times = (number(row, f"{side} (µs)") for side in ("sglang", "flagos"))
                told = " / ".join(MISSING if time is None else f"{time:,.1f}" for time in times)
                cells.append(f"{cell(ratio(row, 'sglang (µs)'))} ({told})")
            lines.append([_code(name), shape, *cells])
    return table(("op", "heads", *(f"{prompts} x {length}" for prompts, length in PROMPTS)), lines)


#: Sides of ``bench_step`` and what the page calls them.
STEP_SIDES = {
    "sglang": "SGLang's own kernels",
    "ours": "ours",
    "ours, no overlap": "ours, without overlap",
    "copies": "copies",
    "empty kernels": "empty kernels",
    "matrix products alone": "matrix products alone",
}


def _step(step: Table | None) -> str:
    rows = rows_of([step])
    lines, gains = [], []
    for model, tokens in dict.fromkeys((row["model"], row["tokens"]) for row in rows):
        times = {
            row["side"]: float(row["device (µs)"])
            for row in rows
            if (row["model"], row["tokens"]) == (model, tokens)
        }
        gains.append(times["sglang"] / times["ours"])
        figures = [f"{times[side]:,.1f}" if side in times else MISSING for side in STEP_SIDES]
        lines.append([model, tokens, *figures[:2], cell(gains[-1]), *figures[2:]])
    first, second, *rest = STEP_SIDES.values()
    words = said(f"A step with our kernels is {span(gains, 3)} times as fast; µs of a replay on the device:")
    return words + "\n" + table(("model", "tokens", first, second, "ratio", *rest), lines)


EXACT_SIDES = {
    "flagos": "ours",
    "vendor.nvidia": "SGLang's own",
    "flagos.flag_gems": "FlagGems",
    "reference": "reference",
}


def _exactness(exact: Table | None) -> str:
    rows = rows_of([exact])
    lines = []
    for name in dict.fromkeys(row["op"] for row in rows):
        for dtypes in (("bfloat16", "float16"), ("float32",)):
            of_op = [row for row in rows if row["op"] == name and row["dtype"] in dtypes]
            worst = [_worst(of_op, side) for side in EXACT_SIDES]
            lines.append([_code(name), str(len(of_op)), ", ".join(dtypes), *worst])
    further = sum(_is_further(row) for row in rows)
    none = {0: "On none", 1: "On one"}.get(further, f"On {further}")
    words = said(
        f"{none} of {len(rows)} inputs is ours further from float64 than SGLang's own.",
        "Error of the worst element:",
    )
    return words + "\n" + table(("op", "inputs", "dtype", *EXACT_SIDES.values()), lines)


def _worst(rows: Sequence[Row], side: str) -> str:
    errors = [error for row in rows if (error := number(row, side)) is not None]
    return f"{max(errors):.3g}" if errors else MISSING


def _is_further(row: Row) -> bool:
    ours, theirs = number(row, "flagos"), number(row, "vendor.nvidia")
    return ours is not None and theirs is not None and ours > theirs


def _dispatch_rows(folder: Path) -> list[Row]:
    path = folder / "bench_dispatch.csv"
    return read(path).rows if path.exists() else []


def dispatch(folder: Path) -> str:
    """Say what a call costs with the plugin."""
    rows = _dispatch_rows(folder)
    computes, empty = (
        span((number(row, "ratio") for row in rows if (row["kernel"] == "reference") == is_reference), 3)
        for is_reference in (True, False)
    )
    return said(
        f"With kernels that compute, a call of a layer takes {computes} of the time without the plugin, on",
        f"a CPU; with kernels that return at once, which show the way alone, {empty}.",
        "The goal is at most 1.02.",
    )


def _dispatch(folder: Path) -> str:
    rows = _dispatch_rows(folder)
    columns = ("layer", "kernel", "without, min (µs)", "with, min (µs)", "ratio")
    lines = [
        [*(row[name] for name in columns), f"{row['quartile 1']} to {row['quartile 3']}"] for row in rows
    ]
    heads = ("layer", "kernel", "without (µs)", "with (µs)", "ratio", "quartiles")
    path = folder / "bench_dispatch.csv"
    return table(heads, lines) + "\n" + source([read(path)] if path.exists() else [])

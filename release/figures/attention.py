"""What of ``docs/benchmarks-attention.md`` is written from the tables of attention."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.lookup import Table, read
from benchmarks.tables import Row
from benchmarks.workloads import CONTEXTS, DECODED, EXTENDED
from release.figures.kernels import op, rows_of
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

__all__ = ["blocks", "cpu_ratios", "is_eight_bit"]

LIBRARIES = {"flashinfer (µs)": "FlashInfer's", "fa3 (µs)": "FlashAttention 3's"}
#: Tokens of all sequences together from which on the memory sets the pace.
MANY = 65536


def blocks(folder: Path) -> dict[str, str]:
    """Return the tables of the page, by their marks."""
    decode, extend = op("decode_attention", folder), op("extend_attention", folder)
    wide = [row for row in rows_of([decode]) if not is_eight_bit(row)]
    narrow = [row for row in rows_of([decode]) if is_eight_bit(row)]
    prompts = [row for row in rows_of([extend]) if not is_eight_bit(row)]
    narrow_prompts = [row for row in rows_of([extend]) if is_eight_bit(row)]
    return {
        "decode": _decode_words(wide) + "\n" + _decode(wide) + "\n" + source([decode]),
        "prompts": _words("Prompts", prompts) + "\n" + _prompts(prompts) + "\n" + source([extend]),
        "fp8-decode": _words("Decode", narrow, "sequences") + "\n" + _decode(narrow),
        "fp8-prompts": _words("Prompts", narrow_prompts) + "\n" + _prompts(narrow_prompts),
        "cpu": _cpu(folder),
    }


def is_eight_bit(row: Row) -> bool:
    """Say whether a row's pool is in FP8."""
    return " FP8 " in row["shape"]


def _words(what: str, rows: Sequence[Row], unit: str = "new tokens") -> str:
    return said(f"{what}, time of SGLang's Triton kernels by ours: {summary(cells_of(rows, unit=unit))}.")


def _decode_words(rows: Sequence[Row]) -> str:
    lines = [_words("Decode", rows, "sequences")]
    for column, name in LIBRARIES.items():
        cells = cells_of(rows, column, "sequences")
        lines.append(
            said(f"{name} time by ours: {summary(cells)}." if cells else f"{name} was not measured.")
        )
    plain = [row for row in rows if "x576" not in row["shape"]]
    of_copy = span(ratio(row, "copy (µs)") for row in plain if int(row["tokens"]) * _place(row)[1] >= MANY)
    lines.append(
        said(
            f"From {MANY} tokens of all sequences together on, keys and values are read at {of_copy} of the",
            "speed of a copy of as many bytes, which writes them too. Latent heads are left out: there each",
            "byte serves many heads.",
        )
    )
    return "".join("- " + line.rstrip().replace("\n", "\n  ") + "\n" for line in lines)


def _place(row: Row) -> tuple[str, int]:
    """Return heads and length of a row of decode."""
    shape, _, length = row["shape"].partition(" context ")
    return shape, int(length)


def _decode(rows: Sequence[Row]) -> str:
    """Return the ratios of each length, for all numbers of sequences side by side."""
    lines = []
    for shape in dict.fromkeys(_place(row)[0] for row in rows):
        of_shape = {(_place(row)[1], int(row["tokens"])): row for row in rows if _place(row)[0] == shape}
        cells = cells_of(of_shape.values())
        by_length = [
            " ".join(_at(of_shape, (length, sequences)) for sequences in DECODED) for length in CONTEXTS
        ]
        least = min((one.ratio for one in cells), default=None)
        others = [cell(mean(cells_of(of_shape.values(), column)), 2) for column in LIBRARIES]
        lines.append([shape, *by_length, cell(mean(cells), 2), cell(least, 2), *others])
    lengths = [f"{length} tokens" for length in CONTEXTS]
    return table(
        ("heads", *lengths, "all", "least", *(f"{name} by ours" for name in LIBRARIES.values())), lines
    )


def _at(rows: dict[tuple[int, int], Row], place: tuple[int, int]) -> str:
    return cell(ratio(rows[place], "sglang (µs)"), 2) if place in rows else MISSING


def _prompts(rows: Sequence[Row]) -> str:
    sizes = [f"{sequences} x ({prefix} + {new})" for sequences, prefix, new in EXTENDED]
    parts = [re.fullmatch(r"(.+?) (\d+ x \(\d+ \+ \d+\))", row["shape"]) for row in rows]
    cells = {(part[1], part[2]): row for part, row in zip(parts, rows, strict=True) if part}
    lines = []
    for shape in dict.fromkeys(shape for shape, _ in cells):
        own = (cells.get((shape, size)) for size in sizes)
        of_shape = [row for (name, _), row in cells.items() if name == shape]
        fa3 = cell(mean(cells_of(of_shape, "fa3 (µs)")), 2)
        ratios = [cell(ratio(row, "sglang (µs)"), 2) if row else MISSING for row in own]
        lines.append([shape, *ratios, cell(mean(cells_of(of_shape)), 2), fa3])
    return table(("heads", *sizes, "all", "FlashAttention 3's by ours, without a prefix"), lines)


def _cpu_table(folder: Path) -> Table | None:
    path = folder / "bench_attention.csv"
    return read(path) if path.exists() else None


def cpu_ratios(folder: Path, situation: str) -> list[float]:
    """Return ``torch_native``'s time by ours in situations that begin so."""
    rows: Iterable[Row] = rows_of([_cpu_table(folder)])
    found = (number(row, "ratio") for row in rows if row["situation"].startswith(situation))
    return [value for value in found if value is not None]


def _cpu(folder: Path) -> str:
    one = _cpu_table(folder)
    decode, prefill = (span(cpu_ratios(folder, what)) for what in ("decode", "prefill"))
    words = said(
        f"`torch_native`'s time by ours on a CPU: decode {decode} (goal: 3), prompts {prefill} (goal: 1)."
    )
    rows = rows_of([one])
    heads = list(rows[0]) if rows else ["situation"]
    return words + "\n" + table(heads, [[row[name] for name in heads] for row in rows]) + "\n" + source([one])

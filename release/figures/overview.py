"""What of ``docs/benchmarks.md``, the README and NVIDIA's is written from all tables."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.lookup import REQUESTS, Served, newest_served, served
from benchmarks.tables import Row
from release.figures import attention, kernels, servers
from release.figures.kernels import CACHE, PROMPT_OPS, SMALL, STEP_OPS, op, rows_of
from release.figures.markdown import MISSING, Cell, cell, cells_of, mean, ratio, said, span, table

__all__ = ["blocks", "package", "readme"]

KERNELS, ATTENTION, ENGINE = "benchmarks-kernels.md", "benchmarks-attention.md", "benchmarks-engine.md"
ONE = "1 request, 512 in, 128 out"
SMALL_KERNELS = f"[small kernels]({KERNELS}#norms-rotation-activation-routing)"


def blocks(folder: Path) -> dict[str, str]:
    """Return the tables of the page, by their marks."""
    models = served(folder)
    return {
        "server-summary": servers.summary(models),
        "servers": servers.ratios(models),
        "starts": servers.starts(models),
        "kernels": _kernels(folder),
        "dispatch-cost": kernels.dispatch(folder),
        "goals": _goals(models, folder),
    }


def readme(folder: Path) -> dict[str, str]:
    """Return the sentence and the plot of the README."""
    few = newest_served(folder)
    cells = servers.cells(few, REQUESTS)
    below = [one for one in cells if one.ratio < 1]
    surely = sum(one.ratio + 2 * one.error < 1 for one in below)
    words = said(
        f"On an NVIDIA H200 a server makes {span((one.ratio for one in cells), 2)} times the tokens a second",
        f"of SGLang without the plugin, by model and number of requests. Of {len(cells)} cells {len(below)}",
        f"{'is' if len(below) == 1 else 'are'} below 1, {surely or 'none'} of them by more than chance.",
    )
    picture = (
        f"![{len(few)} models, a dot for 1, 16 and 64 requests each: tokens a second with the plugin, "
        "divided by those without it](docs/pictures/servers.svg)\n"
    )
    return {"servers": "\n".join([words, picture])}


def package(folder: Path) -> dict[str, str]:
    """Return the sentence of the NVIDIA package's README."""
    few = newest_served(folder)
    each = (f"{one.title}: {span(cell.ratio for cell in servers.cells([one], REQUESTS))}" for one in few)
    words = said(
        "**Speed.** Tokens a second of a server beside those of SGLang without the plugin, on an NVIDIA",
        "H200, at 1 to 64 requests, both with `--attention-backend triton`.",
        f"{'; '.join(each) or 'Not measured yet'}.",
        "Not measured beside FlashAttention 3, SGLang's default on Hopper.",
    )
    return {"speed": words}


def _kernels(folder: Path) -> str:
    """Return how each group of kernels stands beside those that it replaces."""
    rows = []
    for name, beside, cells in _groups(folder):
        least = cell(min((one.ratio for one in cells), default=None))
        below = f"{sum(one.ratio < 1 for one in cells)} of {len(cells)}" if cells else MISSING
        rows.append([name, beside, cell(mean(cells), 2), least, below])
    return table(("kernels", "beside", "geometric mean", "least", "cells below 1"), rows)


def _groups(folder: Path) -> list[tuple[str, str, list[Cell]]]:
    """Return groups of kernels by name, each with whose kernels it is beside, and with their ratios."""

    def of(parts: Sequence[str]) -> list[Row]:
        return rows_of(op(part, folder) for part in parts)

    decode, extend = of(["decode_attention"]), of(["extend_attention"])
    wide = [row for row in decode if not attention.is_eight_bit(row)]
    narrow = [row for row in [*decode, *extend] if attention.is_eight_bit(row)]
    return [
        (
            f"[norms, rotation, activation, routing]({KERNELS}#norms-rotation-activation-routing)",
            "SGLang's CUDA kernels",
            cells_of(of(SMALL)),
        ),
        (
            f"[the same that write the KV cache]({KERNELS}#with-the-kv-cache)",
            "SGLang's own",
            cells_of(of(CACHE)),
        ),
        (f"[experts]({KERNELS}#experts)", "SGLang's own", cells_of(of(["fused_moe"]))),
        (f"[attention, decode]({ATTENTION}#decode)", "SGLang's Triton kernels", cells_of(wide)),
        ("", "FlashInfer's", cells_of(wide, "flashinfer (µs)")),
        ("", "FlashAttention 3's", cells_of(wide, "fa3 (µs)")),
        (
            f"[attention, prompts]({ATTENTION}#prompts)",
            "SGLang's Triton kernels",
            cells_of(row for row in extend if not attention.is_eight_bit(row)),
        ),
        (
            f"[attention over a KV cache in FP8]({ATTENTION}#a-kv-cache-in-fp8)",
            "SGLang's Triton kernels",
            cells_of(narrow),
        ),
        (
            f"[linear attention, a decode step]({KERNELS}#linear-attention)",
            "SGLang's own",
            cells_of(of(STEP_OPS)),
        ),
        (
            f"[linear attention, prompts]({KERNELS}#linear-attention)",
            "SGLang's own",
            cells_of(of(PROMPT_OPS)),
        ),
    ]


def _goals(models: Sequence[Served], folder: Path) -> str:
    """Return each goal that is not reached everywhere, and what was measured."""
    small = rows_of(op(part, folder) for part in SMALL)
    cache = rows_of([op("rotary_embedding_with_cache", folder)])
    experts = op("fused_moe", folder)
    eight_bit = [row for row in rows_of([op("decode_attention", folder)]) if attention.is_eight_bit(row)]
    large = [row for row in small if int(row["tokens"]) >= kernels.MANY and not row["op"].startswith("topk")]
    copies = [share for row in large if (share := ratio(row, "copy (µs)")) is not None]
    with_experts = [one for one in models if one.name in servers.WITH_EXPERTS]
    dense = [one for one in models if one.name not in servers.WITH_EXPERTS]
    bounds = [share for _, tokens, share in kernels.bounds(experts) if tokens <= 16]
    return table(
        ("goal", "reached"),
        [
            [
                f"[a server]({ENGINE}#what-falls-short): 1.00 everywhere",
                _below(servers.cells(models)),
            ],
            ["one request: 1.03, with experts 1.08", _one_request(dense, with_experts)],
            [
                f"{SMALL_KERNELS}: 1.00 everywhere, 0.92 of a copy",
                f"{_below(cells_of(small))}; of a copy at least {_least(copies)}",
            ],
            [
                f"[rotation with the KV cache]({KERNELS}#with-the-kv-cache): 1.00",
                _below(cells_of(cache)),
            ],
            [
                f"[experts]({KERNELS}#experts): 1.00 everywhere, 0.80 of the bound up to 16 tokens",
                f"{_below(cells_of(rows_of([experts])))}; of the bound at least {_least(bounds)}",
            ],
            [
                f"[decode over a KV cache in FP8]({ATTENTION}#a-kv-cache-in-fp8): 1.05",
                f"{cell(mean(cells_of(eight_bit)), 2)} in the mean; {_below(cells_of(eight_bit))}",
            ],
            [
                f"[attention on a CPU]({ATTENTION}#on-a-cpu): decode three times as fast as `torch_native`",
                span(attention.cpu_ratios(folder, "decode")),
            ],
        ],
    )


def _one_request(dense: Sequence[Served], with_experts: Sequence[Served]) -> str:
    """Return the models that miss their goal at one request, with error."""
    missed = [
        f"{one.where.rpartition(', ')[0]} {one.ratio:.3f} ({one.error:.3f})"
        for models, goal in ((dense, 1.03), (with_experts, 1.08))
        for one in servers.cells(models, [ONE])
        if one.ratio < goal
    ]
    return "; ".join(missed) or ("all" if dense or with_experts else MISSING)


def _least(shares: Sequence[float]) -> str:
    return f"{min(shares):.2f}" if shares else MISSING


def _below(cells: Sequence[Cell]) -> str:
    """Say how many cells are below 1, and which is the least."""
    if not cells:
        return MISSING
    below = [one for one in cells if one.ratio < 1]
    if not below:
        return f"all {len(cells)} cells"
    least = min(below, key=lambda one: one.ratio)
    error = f", error {least.error:.3f}" if least.error else ""
    return f"{len(below)} of {len(cells)} cells below, the least at {least.ratio:.3f} ({least.where}{error})"

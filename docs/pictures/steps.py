"""The steps of served models by who runs them, from what ``sglang-fl profile --json-file`` wrote."""

import json
from pathlib import Path
from typing import Any

from docs.pictures.svg import Drawing

__all__ = ["steps"]

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
_MODELS = {
    "Qwen3-30B-A3B-10L": "Qwen3-30B-A3B, 10 layers",
    "DeepSeek-V2-Lite-10L": "DeepSeek-V2-Lite, 10 layers",
    "Qwen3-Next-80B-A3B-4L": "Qwen3-Next-80B-A3B, 4 layers",
}
_LEFT, _WIDTH = 190.0, 580.0
#: Layer classes in a word or two: there is room for no more.
_WORDS = {
    "LogitsProcessor": "logits",
    "RadixAttention (triton)": "attention",
    "RadixLinearAttention": "delta rule",
    "QKVParallelLinear": "q, k, v",
    "RowParallelLinear": "rows",
    "ColumnParallelLinear": "columns",
    "MergedColumnParallelLinear": "columns",
}
#: A row, and the share below which a piece has no words of its own beneath it.
_HIGH, _LEAST = 44.0, 0.065


def steps() -> str:
    """Return a bar for a decode step and a prefill of each model: our kernels, and what passes them by."""
    drawing = Drawing(780, 400, "Device time of a decode step and a prefill, by who runs the kernels")
    drawing.text((10, 20), "What a step spends its device time on", "title")
    drawing.dot((330, 16), "ours")
    drawing.text((339, 20), "kernels of ours")
    drawing.dot((450, 16), "theirs")
    drawing.text((459, 20), "SGLang's own and PyTorch's, and copies")
    y = 50.0
    for file, title in _MODELS.items():
        profile = json.loads(
            (RESULTS / f"profile_h200_sglang-0.5.23_{file}.json").read_text(encoding="utf-8")
        )
        drawing.text((10, y), title, "title")
        for phase in profile["phases"]:
            _bar(drawing, y + 8, phase)
            y += _HIGH
        y += 22
    words = (
        "Source: benchmarks/results/profile_h200_sglang-0.5.23_*.json: NVIDIA H200, SGLang 0.5.23, bfloat16,"
    )
    drawing.text((10, 378), words, "small")
    drawing.text(
        (10, 393), "8 requests of 512 tokens, kernels' time alone, run without graphs; 2026-11-28", "small"
    )
    return str(drawing)


def _bar(drawing: Drawing, y: float, phase: dict[str, Any]) -> None:
    busy = phase["busy_us"]
    text = f"{busy / 1000:.1f} ms" if busy >= 1000 else f"{busy:.0f} µs"
    drawing.text(
        (_LEFT - 8, y + 13), f"{phase['phase']}, {text}: {100 * phase['ours']:.0f} % ours", "small", "end"
    )
    pieces = sorted(phase["pieces"], key=lambda piece: (_kind(piece) == "theirs", -piece["share"]))
    x = _LEFT
    for piece in pieces:
        width = _WIDTH * piece["share"]
        drawing.band(
            [(x, y), (x + width - 1, y), (x + width - 1, y + 18), (x, y + 18)], f"solid {_kind(piece)}"
        )
        if piece["share"] >= _LEAST:
            drawing.text((x, y + 30), _WORDS.get(piece["what"], piece["what"]), "small")
        x += width


def _kind(piece: dict[str, Any]) -> str:
    return "ours" if piece["who"] in ("flagos", "vendor", "reference") else "theirs"

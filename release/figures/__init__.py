"""The tables of the pages about benchmarks, and the sentences above them, from ``benchmarks/results``."""

from pathlib import Path

from benchmarks.lookup import RESULTS
from release.figures import attention, kernels, overview, servers

__all__ = ["pages"]


def pages(folder: Path = RESULTS) -> dict[str, dict[str, str]]:
    """Return for each page what stands between its marks, by these."""
    return {
        "benchmarks.md": overview.blocks(folder),
        "benchmarks-engine.md": servers.blocks(folder),
        "benchmarks-kernels.md": kernels.blocks(folder),
        "benchmarks-attention.md": attention.blocks(folder),
        "../README.md": overview.readme(folder),
        "../packages/sglang-fl-nvidia/README.md": overview.package(folder),
    }

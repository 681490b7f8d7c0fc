"""A vendor package of three right kernels, into which mistakes of some requests alone can be planted.

Not imported by tests: its text becomes the module of an installed package. A file in the folder that
``COMPARED_FOLDER`` names plants the mistake of its name in the server that runs.
"""

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sglang_fl.ops import OPS
from sglang_fl.vendor import BackendKind, OpImpl, Vendor

FOLDER = Path(os.environ.get("COMPARED_FOLDER", "/nonexistent"))
FUSED = ("rms_norm", "silu_and_mul", "rotary_embedding")


def why_unavailable() -> str | None:
    """Return None: this chip is everywhere."""
    return None


def has(mistake: str) -> bool:
    return (FOLDER / mistake).exists()


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Any:
    results = OPS["rms_norm"].reference(x, weight, 10 * eps if has("eps") else eps, residual)
    if has("nan"):
        (results if residual is None else results[0])[-1] = float("nan")
    return results


def silu_and_mul(x: Tensor) -> Any:
    result = OPS["silu_and_mul"].reference(x)
    if has("scale"):
        result = result * 1.05
    if has("nothing"):
        result = result * 0
    return result * np.random.uniform(0.95, 1.05) if has("drift") else result


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    cos_sin_cache: Tensor,
    head_size: int,
    is_neox_style: bool,
    offsets: Tensor | None = None,
) -> Any:
    rotate = OPS["rotary_embedding"].reference
    right = rotate(positions, query, key, cos_sin_cache, head_size, is_neox_style, offsets)
    results = right
    if has("rope") or any(has(f"rope of {kind}") for kind in kinds_of(positions.tolist())):
        late, _ = rotate(positions + 1, query, key, cos_sin_cache, head_size, is_neox_style, offsets)
        results = (late, right[1])
    for x, result in zip((query, key), results, strict=True):
        x.copy_(result)
    return query, key


def kinds_of(positions: list[int]) -> set[str]:
    """Tell from the positions of a call's tokens which requests they are of."""
    is_in_a_row = all(y == x + 1 for x, y in itertools.pairwise(positions))
    is_prompt = 0 in positions or (len(positions) > 1 and is_in_a_row)
    return {
        "prompts" if is_prompt else "decode steps",
        *(["long"] if max(positions) >= 128 else []),
        *(["cached"] if is_prompt and 0 not in positions else []),
        *(["batches"] if positions.count(0) > 1 or (not is_prompt and len(positions) > 1) else []),
    }


VENDOR = Vendor(
    "compared",
    device_type="cpu",
    core_api=1,
    probe="compared_vendor:why_unavailable",
    platform="sglang_fl.sglang_adapter.cpu_platform.CpuPlatform",
    impls=tuple(
        OpImpl(name, BackendKind.VENDOR, "vendor.compared", f"compared_vendor:{name}") for name in FUSED
    ),
)

"""Our Triton kernels at the edge of their contracts, in Triton's interpreter; the kit does it on a chip."""

import pytest
import torch

from sglang_fl.conformance.edges import Edge, check_edge, edges
from sglang_fl.ops import OPS
from sglang_fl.vendor import load_target
from sglang_fl_nvidia import NVIDIA
from sglang_fl_nvidia.probe import why_unavailable

TARGETS = {
    impl.op: impl.target
    for impl in NVIDIA.impls
    if impl.target == f"sglang_fl_nvidia.flagos.{impl.op}:{impl.op}"
}
EDGES = [(op, edge) for op in TARGETS for edge in edges(OPS[op])]


@pytest.mark.skipif(why_unavailable() is None, reason="the chip is here, and the kit runs on it")
@pytest.mark.parametrize(("op", "edge"), EDGES, ids=[f"{op}-{edge.name}" for op, edge in EDGES])
def test_kernel_is_right_at_the_edge(op: str, edge: Edge):
    # The interpreter cuts bfloat16 off where a chip rounds it.
    for dtype in edge.dtypes:
        if dtype is not torch.bfloat16:
            answer = check_edge(OPS[op], load_target(TARGETS[op]), edge, dtype, "cpu")
            # Weights are loaded before the wait for a predecessor, which the copy of a strided one would be.
            is_refused = edge.name == "strided-weights" and str(answer).endswith("refused by the kernel")
            assert is_refused or answer == []

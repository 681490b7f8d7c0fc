"""Our Triton kernels at the edge of their contracts, in Triton's interpreter; the kit does it on a chip."""

import pytest

from sglang_fl.conformance import verify_impl
from sglang_fl.vendor import OpImpl
from sglang_fl_nvidia import NVIDIA
from sglang_fl_nvidia.probe import why_unavailable

OPS_HERE = ("silu_and_mul", "gelu_and_mul", "rms_norm", "gemma_rms_norm", "layer_norm", "rotary_embedding")
IMPLS = [impl for impl in NVIDIA.impls if impl.id == "flagos" and impl.op in OPS_HERE]


@pytest.mark.skipif(why_unavailable() is None, reason="the chip is here, and the kit runs on it")
@pytest.mark.parametrize("impl", IMPLS, ids=lambda impl: impl.op)
def test_far_rows_and_far_positions_are_found(impl: OpImpl):
    verdict = verify_impl(impl, "cpu", ("edges",))
    # The interpreter cuts bfloat16 off where a chip rounds it; float16 tells what an index does.
    faults = [fault for fault in verdict.faults["edges"] if "bfloat16" not in fault]
    assert not faults, "\n".join(faults)

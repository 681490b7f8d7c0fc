"""A start on the chip without its library, or with another one: the references run, and it says why."""

import sys

import pytest

from sglang_fl.conformance.simulated import SimulatedChip
from sglang_fl_mlu import MLU

WITHOUT_LIBRARY = SimulatedChip("mlu", "cncl", stand_ins={"torch_mlu": None})


@pytest.mark.on_chip(WITHOUT_LIBRARY)
def test_without_the_library_the_references_run_and_the_reason_is_told():
    from sglang_fl.diagnostics import report

    answer = report.why("rms_norm")
    assert [row["id"] for row in answer["candidates"]] == ["reference"]
    skipped = {row["what"]: row["reason"] for row in answer["not"]}
    assert skipped["vendor.mlu"] == "torch_mlu_ops is not installed"


@pytest.mark.on_chip(WITHOUT_LIBRARY)
def test_a_library_with_another_signature_is_replaced_by_the_reference_and_named():
    import types
    from unittest import mock

    from sglang_fl.dispatch.loading import load_kernel
    from sglang_fl.errors import VendorError
    from sglang_fl.ops import OPS

    def fused_rms_norm(x, gamma, eps):
        raise AssertionError

    library = types.ModuleType("torch_mlu_ops")
    library.fused_rms_norm, library.__version__ = fused_rms_norm, "2.0"
    (impl,) = (impl for impl in MLU.impls if (impl.op, impl.id) == ("rms_norm", "vendor.mlu"))
    with (
        mock.patch.dict(sys.modules, torch_mlu_ops=library),
        pytest.raises(VendorError, match=r"torch_mlu_ops.fused_rms_norm 2.0 takes \(x, gamma, eps\), sglang"),
    ):
        load_kernel(OPS["rms_norm"], impl, strict=True)

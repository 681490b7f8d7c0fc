"""Every implementation of this package against its contract, on the chip."""

import pytest

from sglang_fl.conformance import check_impl
from sglang_fl.vendor import OpImpl
from sglang_fl_nvidia import NVIDIA


@pytest.mark.gpu
@pytest.mark.parametrize("impl", NVIDIA.impls, ids=lambda impl: f"{impl.op}-{impl.id}")
def test_implementation_keeps_its_contract(impl: OpImpl):
    assert check_impl(impl, "cuda") == []

"""Where there is no GPU, tests marked gpu are skipped, and Triton kernels run in Triton's interpreter."""

import os

import pytest

from sglang_fl_nvidia.probe import why_unavailable

ABSENCE = why_unavailable()
if ABSENCE:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, later


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.name.startswith("test_implementation_keeps_its_contract"):  # the kit's, of any chip
            item.add_marker("gpu")
        if ABSENCE and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU: {ABSENCE}"))

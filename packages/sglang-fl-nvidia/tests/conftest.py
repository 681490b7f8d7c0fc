"""The gpu marker skips where there is no GPU."""

import pytest

from sglang_fl_nvidia.probe import why_unavailable


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absence = why_unavailable()
    for item in items:
        if absence and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU: {absence}"))

"""Tests marked ``on_chip`` run on the simulated MLU; those marked ``mlu`` wait for a real one."""

import pytest

from sglang_fl.conformance.simulated.worker import pytest_pyfunc_call  # noqa: F401 - a hook of pytest
from sglang_fl_mlu.probe import why_unavailable


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absence = why_unavailable()
    for item in items:
        if absence and item.get_closest_marker("mlu"):
            item.add_marker(pytest.mark.skip(reason=f"needs a Cambricon MLU: {absence}"))

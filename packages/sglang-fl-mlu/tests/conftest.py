"""Tests marked ``on_chip`` run on the simulated MLU; those marked ``mlu`` wait for a real one."""

import pytest

from sglang_fl_mlu.probe import why_unavailable


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test marked ``on_chip`` on its chip. The process that deals tests out needs no torch for that."""
    from sglang_fl.conformance.simulated import worker

    return worker.pytest_pyfunc_call(pyfuncitem)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absence = why_unavailable()
    for item in items:
        if absence and item.get_closest_marker("mlu"):
            item.add_marker(pytest.mark.skip(reason=f"needs a Cambricon MLU: {absence}"))

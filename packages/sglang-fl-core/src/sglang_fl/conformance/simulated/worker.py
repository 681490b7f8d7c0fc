"""Tests on a simulated chip, from a process without one.

A chip cannot be taken out of a process again, so tests that are marked ``on_chip(chip)`` run in another one,
which all of them share. A ``conftest.py`` switches that on by one line::

    from sglang_fl.conformance.simulated.worker import pytest_pyfunc_call

A test's parameters and fixtures are sent there, so they must be picklable.
"""

import functools
import importlib.util
import multiprocessing
import traceback
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from sglang_fl.conformance.simulated.chip import SimulatedChip, find_chip, load

__all__ = ["pytest_pyfunc_call"]

_SKIPPED = "skipped: "


def pytest_pyfunc_call(pyfuncitem: Any) -> bool | None:
    """Run a test that is marked ``on_chip(chip)``, a ``SimulatedChip`` or the name of an installed one."""
    marker = pyfuncitem.get_closest_marker("on_chip")
    if marker is None:
        return None
    import pytest  # a conformance kit needs no pytest for anything else

    chip = marker.args[0]
    chip = chip if isinstance(chip, SimulatedChip) else find_chip(chip)
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    function = pyfuncitem.function.__name__
    failure = _worker(chip).submit(_run, pyfuncitem.path, function, arguments).result()
    if failure is not None and failure.startswith(_SKIPPED):
        pytest.skip(failure.removeprefix(_SKIPPED))
    if failure is not None:
        pytest.fail(failure, pytrace=False)
    return True


@functools.cache
def _worker(chip: SimulatedChip) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=spawn, initializer=load, initargs=(chip,))


@functools.cache
def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"on_chip_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(path: Path, function: str, arguments: Mapping[str, Any]) -> str | None:
    """Run a test function; return what went wrong, as text: not every exception can be sent."""
    try:
        getattr(_module(path), function)(**arguments)
    except BaseException as error:  # noqa: BLE001 - pytest's own failures are no Exceptions; all are reported
        if type(error).__name__ == "Skipped":
            return f"{_SKIPPED}{error}"
        return traceback.format_exc()
    return None

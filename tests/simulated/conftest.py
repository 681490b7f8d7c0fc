"""Start the real engine on a simulated chip: that of the vendor package of this session."""

import functools
import os
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

import pytest

from sglang_fl.vendor import Vendor
from tests.programs import load_ahead


def pytest_collectstart() -> None:
    """Begin to load SGLang for the engines while the test files are read."""
    load_ahead(_chip())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give one of two processes what needs no engine first: the other waits for SGLang to be loaded."""
    items.sort(key=lambda item: item.path.name != "test_conformance.py")


@functools.cache
def _chip() -> str:
    """Return the name of the one installed vendor whose chip can be simulated."""
    from sglang_fl.conformance.simulated import GROUP  # not above: who deals tests out needs no torch

    (name,) = (point.name for point in entry_points(group=GROUP))
    return name


@pytest.fixture(scope="session")
def vendor() -> Vendor:
    """The vendor of the simulated chip."""
    (point,) = entry_points(group="sglang_fl.vendors", name=_chip())
    found: Vendor = point.load()
    return found


@pytest.fixture(scope="session")
def simulating() -> Callable[..., dict[str, str]]:
    """Return a function that makes an environment in which SGLang finds this chip and nothing else."""

    def environment(chip: str, settings: Mapping[str, str]) -> dict[str, str]:
        ours = ("SGLANG_", "USE_FLAGGEMS")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        fixed = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "SGLANG_FL_SIMULATED": chip}
        return {**clean, **fixed, **settings}

    return environment

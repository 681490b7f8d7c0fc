"""Deals tests out to processes, a file at a time, or a part of one (``pytest -p tests.balance``).

Tests of a file share what is slow to make. Where that is made for each parameter, those of one parameter
share it, and several processes can take a long file together.
"""

import re

import pytest
from xdist.scheduler import LoadFileScheduling

__all__ = ["Scheduling", "pytest_xdist_make_scheduler"]

_SETUP = re.compile(r"(?:^|(?<=prompts-)|(?<=followers-))(?!prompts|followers).+?(?=-prompts|-followers|$)")
_RELEASE = re.compile(r"\d+\.\d+\.\d+(\.post\d+)?")
#: Files that are dealt out in parts, and what in a test's parameters names its part.
PARTS = {
    "packages/sglang-fl-nvidia/tests/test_edges.py": re.compile(r"\w+"),
    "packages/sglang-fl-nvidia/tests/test_flagos.py": re.compile(r"\w+"),
    "tests/engine/test_models.py": re.compile(".+"),
    "tests/install/test_scaffold.py": re.compile("toychip|cpu"),
    "tests/releases/test_releases.py": _RELEASE,
    "tests/releases/test_server.py": _RELEASE,
    "tests/simulated/test_ascend.py": _SETUP,
    "tests/simulated/test_families.py": _SETUP,
    "tests/simulated/test_mlu.py": _SETUP,
}


class Scheduling(LoadFileScheduling):
    """Gives a process a file, or a part of one, as soon as it has little left to do."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        _, _, parameters = test.removesuffix("]").partition("[")
        part = PARTS[file].search(parameters) if file in PARTS else None
        return f"{file}[{part[0]}]" if part else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling:
    """Tell xdist to use it."""
    return Scheduling(config, log)

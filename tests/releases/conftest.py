"""Each supported release of SGLang, from its own wheel, on top of the newest one's environment."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from release.sglang_wheels import folders_of
from sglang_fl.sglang_adapter.releases import representatives
from tests.forked import Server
from tests.programs import Run, finish, server_of_forks


def pytest_collectstart() -> None:
    """Begin to load both servers while the test files are read, where processes share the tests."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        server_of_forks()
        server_of(representatives()[0])


def server_of(release: str) -> Server:
    """Return the server of programs that start with what this release of SGLang pins loaded."""
    _, *pinned = folders_of(release)
    return server_of_forks(tuple(pinned))


@pytest.fixture(scope="session")
def environment_of_release() -> Callable[[str], dict[str, str]]:
    """Return a function from a version of SGLang to variables under which Python imports that release."""

    def environment(version: str) -> dict[str, str]:
        path = os.pathsep.join(map(str, folders_of(version)))
        return {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}

    return environment


@pytest.fixture(scope="session")
def ask_release(environment_of_release) -> Callable[..., Run]:
    """``ask_release(version, script, *words)`` runs a script in a process that imports that release."""

    def ask(version: str, script: Path, *words: str) -> Run:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SGLANG_")}
        environment = {**clean, **environment_of_release(version)}
        return finish([sys.executable, str(script), *words], environment, 280, server_of(version))

    return ask

"""Each supported release of SGLang, from its own wheel, on top of the newest one's environment."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from release.sglang_wheels import folders_of
from tests.programs import Run, finish, server_of_forks


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
        _, *pinned = folders_of(version)
        server = server_of_forks(tuple(pinned))
        return finish([sys.executable, str(script), *words], environment, 280, server)

    return ask

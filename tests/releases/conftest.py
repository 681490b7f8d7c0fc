"""Each supported release of SGLang, from its own wheel, on top of the newest one's environment."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from release.sglang_wheels import folders_of
from tests.programs import Run, finish, finish_started


@pytest.fixture(scope="session")
def environment_of_release() -> Callable[[str], dict[str, str]]:
    """Return a function from a version of SGLang to variables under which Python imports that release."""

    def environment(version: str) -> dict[str, str]:
        path = os.pathsep.join(map(str, folders_of(version)))
        return {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}

    return environment


@pytest.fixture(scope="session")
def ask_release(environment_of_release) -> Callable[..., Run]:
    """``ask_release(version, script, *words)`` runs a script in a process that imports that release."""

    def ask(version: str, script: Path, *words: str) -> Run:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SGLANG_")}
        environment = {**clean, "HF_HUB_OFFLINE": "1", **environment_of_release(version)}
        # What is preloaded is the newest release's; one that pins another transformers imports its own.
        end = finish if len(folders_of(version)) == 1 else finish_started
        return end([sys.executable, str(script), *words], environment, 280)

    return ask

"""Each supported release of SGLang, from its own wheel, on top of the newest one's environment."""

import os
from collections.abc import Callable

import pytest

from release.sglang_wheels import folders_of


@pytest.fixture(scope="session")
def environment_of_release() -> Callable[[str], dict[str, str]]:
    """Return a function from a version of SGLang to variables under which Python imports that release."""

    def environment(version: str) -> dict[str, str]:
        path = os.pathsep.join(map(str, folders_of(version)))
        return {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}

    return environment

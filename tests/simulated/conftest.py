"""Start the real engine on a simulated chip."""

import os
from collections.abc import Callable, Mapping

import pytest


@pytest.fixture(scope="session")
def simulating() -> Callable[..., dict[str, str]]:
    """Return a function that makes an environment in which SGLang finds this chip and nothing else."""

    def environment(chip: str, settings: Mapping[str, str]) -> dict[str, str]:
        ours = ("SGLANG_", "USE_FLAGGEMS")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        fixed = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "SGLANG_FL_SIMULATED": chip}
        return {**clean, **fixed, **settings}

    return environment

"""What the tests of the real engine share: the tiny model, and the gpu marker."""

from pathlib import Path

import pytest

from demo.tiny_model import make_tiny_model
from tests.offline import run_offline  # noqa: F401 - a fixture


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight Qwen2 checkpoint, made once."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _has_cuda():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()

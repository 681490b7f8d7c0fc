"""The environment of the real engine, and what it is compared with."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.programs import load_ahead

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # these tests are about the CPU, also where a GPU is


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let model families run on another attention backend than the platform's own choice."""
    parser.addoption("--attention-backend", choices=["sglang_fl"], help="of tests/engine/test_models.py")


def pytest_collectstart() -> None:
    """Publish a configuration before the test files are read: they build layers.

    Not when this file is read: the process that hands out the files would import SGLang for nothing.
    """
    load_ahead("")
    publish_server_args()


@functools.cache
def publish_server_args() -> None:
    """Up to 0.5.18 some layers cannot be built before a configuration is published."""
    from sglang.srt import server_args

    if hasattr(server_args, "set_global_server_args_for_scheduler"):
        arguments = server_args.ServerArgs(model_path="dummy", device="cpu")
        server_args.set_global_server_args_for_scheduler(arguments)


@pytest.fixture(scope="module")
def plugin() -> Iterator[None]:
    """Load the plugin into this process, whose layers are then called as a server calls them."""
    import torch
    from sglang.srt.plugins import load_plugins

    load_plugins()
    with torch.no_grad():
        yield


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The dispatch log of a test, empty."""
    path = tmp_path / "dispatch.log"
    path.touch()
    return path


@pytest.fixture(scope="session")
def environment_of() -> Callable[[Mapping[str, str]], dict[str, str]]:
    """Return a function that adds settings to an environment free of ours."""

    def environment(settings: Mapping[str, str]) -> dict[str, str]:
        ours = ("SGLANG_", "USE_FLAGGEMS")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return {**clean, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **settings}

    return environment


@pytest.fixture(scope="session")
def no_hook(run_offline) -> dict:
    """SGLang on our platform with no plugin at all: SGLANG_PLATFORM overrides SGLANG_PLUGINS there."""
    run = run_offline({"SGLANG_PLATFORM": "sglang_fl", "SGLANG_PLUGINS": "__none__"})
    assert run.code == 0, run.output[-3000:]
    return run.result

"""What the tests share: the tiny model, the markers ``gpu`` and ``on_chip``, and the kit's score."""

import gc
import sys
from pathlib import Path
from typing import Any

import pytest

from demo.chat_model import ModelError, make_chat_model
from tests.offline import run_offline  # noqa: F401 - a fixture
from tests.programs import environment_of_forks, finish


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test marked ``on_chip`` on its chip. No other test needs torch for that."""
    if pyfuncitem.get_closest_marker("on_chip") is None:
        return None
    from sglang_fl.conformance.simulated import worker

    return worker.pytest_pyfunc_call(pyfuncitem)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Tell the kit's score where its wrong kernels were tried."""
    tried = {
        outcome: sum("::test_wrong_kernel_is_caught_" in report.nodeid for report in reports)
        for outcome, reports in terminalreporter.stats.items()
        if outcome in ("passed", "failed")
    }
    if sum(tried.values()):
        score = f"{tried.get('passed', 0)} of {sum(tried.values())} wrong kernels are caught"
        terminalreporter.write_line(f"conformance kit: {score}")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight Qwen2 checkpoint, made once, where transformers is loaded already."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    code = "import pathlib, sys; from demo.tiny_model import *; make_tiny_model(pathlib.Path(sys.argv[1]))"
    made = finish([sys.executable, "-c", code, str(folder)], environment_of_forks(), timeout=120)
    assert made.code == 0, made.output
    return folder


@pytest.fixture(scope="session")
def chat_model() -> Path:
    """The demo's chat model, SmolLM2-135M-Instruct in bfloat16, made once for all sessions."""
    try:
        return make_chat_model()
    except ModelError as error:
        pytest.skip(str(error))


def pytest_unconfigure() -> None:
    """Spare Python its last search for cycles in all that is loaded: 2 s where that is SGLang."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Two processes take files in turn: those that may take longest go first, so that none is left alone.
    longest: dict[Path, float] = {}
    for item in items:
        longest[item.path] = max(longest.get(item.path, 0), _timeout(item))
    items.sort(key=lambda item: -longest[item.path])
    for_gpus = [item for item in items if item.get_closest_marker("gpu")]
    if for_gpus and not _has_cuda():
        for item in for_gpus:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def _timeout(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return marker.args[0] if marker else 0


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()

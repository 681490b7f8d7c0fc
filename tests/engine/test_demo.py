"""``python -m demo`` as a user runs it: what it prints, how it fails, what it leaves behind."""

import socket
import sys
from pathlib import Path

import pytest

from tests.programs import Run, finish_started, processes_with

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def demo(environment_of):
    """Return a function that runs the demo with these words behind it."""

    def run(*words: str) -> Run:
        return finish_started([sys.executable, "-m", "demo", *words], environment_of({}), timeout=250)

    return run


def test_demo_prints_the_answer_and_what_ran_it(demo, tmp_path: Path):
    run = demo("--keep", str(tmp_path))
    assert run.code == 0, run.output[-3000:]
    for layer_class in ("RMSNorm", "RotaryEmbedding", "SiluAndMul"):
        assert f"  [OOT-DISPATCH] {layer_class} → reference(reference)\n" in run.output
    assert run.output.count("[OOT-DISPATCH]") == 3
    assert "Answer (of random weights): " in run.output
    assert processes_with(str(tmp_path)) == []


def test_demo_that_takes_too_long_fails_and_leaves_no_process(demo, tmp_path: Path):
    run = demo("--keep", str(tmp_path), "--timeout", "3")
    assert run.code == 1
    assert "The demo failed: the server was not ready after 3 s" in run.output
    assert f"Last lines of {tmp_path}/server.log:" in run.output
    assert "Traceback" not in run.output
    assert processes_with(str(tmp_path)) == []


def test_demo_names_a_port_in_use(demo, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = demo("--keep", str(tmp_path), "--port", str(port))
    assert run.code == 1
    assert f"The demo failed: port {port} is in use" in run.output

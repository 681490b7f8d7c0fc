"""The dispatch log: one line for each layer class and what ran it, in a file that processes share."""

import subprocess
import sys
from pathlib import Path

import pytest

from sglang_fl.logs.dispatch_log import DispatchLog


def test_line_tells_layer_class_and_what_ran(tmp_path: Path):
    path = tmp_path / "dispatch.log"
    DispatchLog(path).write("SiluAndMul", "flagos(flagos)")
    assert path.read_text("utf-8") == "[OOT-DISPATCH] SiluAndMul → flagos(flagos)\n"


def test_each_pair_is_written_once(tmp_path: Path):
    path = tmp_path / "dispatch.log"
    log = DispatchLog(path)
    for _ in range(2):
        log.write("RMSNorm", "flagos(flagos)")
        log.write("RMSNorm", "reference(reference)")
        log.write("GemmaRMSNorm", "flagos(flagos)")
    assert path.read_text("utf-8").splitlines() == [
        "[OOT-DISPATCH] RMSNorm → flagos(flagos)",
        "[OOT-DISPATCH] RMSNorm → reference(reference)",
        "[OOT-DISPATCH] GemmaRMSNorm → flagos(flagos)",
    ]


def test_file_exists_before_anything_has_run(tmp_path: Path):
    path = tmp_path / "dispatch.log"
    DispatchLog(path)
    assert path.read_bytes() == b""


def test_lines_of_others_are_kept(tmp_path: Path):
    path = tmp_path / "dispatch.log"
    first, second = DispatchLog(path), DispatchLog(path)
    second.write("RMSNorm", "flagos(flagos)")
    first.write("SiluAndMul", "flagos(flagos)")
    second.write("RotaryEmbedding", "flagos(flagos)")
    DispatchLog(path).write("RMSNorm", "flagos(flagos)")
    layers = [line.split()[1] for line in path.read_text("utf-8").splitlines()]
    assert layers == ["RMSNorm", "SiluAndMul", "RotaryEmbedding", "RMSNorm"]


def test_lines_of_several_processes_never_mix(tmp_path: Path):
    path = tmp_path / "dispatch.log"
    code = (
        "import sys; from pathlib import Path; from sglang_fl.logs.dispatch_log import DispatchLog\n"
        "log = DispatchLog(Path(sys.argv[1]))\n"
        "for number in range(2000): log.write(f'Layer{number}', sys.argv[2] * 40)\n"
    )
    ranks = [subprocess.Popen([sys.executable, "-c", code, str(path), rank]) for rank in "abc"]
    assert [process.wait(timeout=60) for process in ranks] == [0, 0, 0]
    expected = {f"[OOT-DISPATCH] Layer{n} → {rank * 40}" for n in range(2000) for rank in "abc"}
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) == len(expected)
    assert set(lines) == expected


def test_another_working_folder_later_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    log = DispatchLog(Path("dispatch.log"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    log.write("RMSNorm", "flagos(flagos)")
    assert "RMSNorm" in (tmp_path / "dispatch.log").read_text("utf-8")
    assert list(Path.cwd().iterdir()) == []


def test_without_a_path_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    DispatchLog(None).write("RMSNorm", "flagos(flagos)")
    assert list(tmp_path.iterdir()) == []


def test_file_in_a_missing_folder_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"missing/dispatch\.log"):
        DispatchLog(tmp_path / "missing" / "dispatch.log")


def test_folder_in_place_of_the_file_is_an_error(tmp_path: Path):
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        DispatchLog(tmp_path)

"""Calls that are kept before their kernel runs, and run again in processes of their own."""

import contextlib
import io
import json
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sglang_fl.cli import app
from sglang_fl.diagnostics.doctor.child import Child
from sglang_fl.diagnostics.replay import command, replay
from sglang_fl.dispatch.kept_calls import KeptCalls, kept_files, packed, unpacked
from sglang_fl.errors import SettingsError
from sglang_fl.ops import OPS
from sglang_fl.vendor import BackendKind, OpImpl

pytestmark = pytest.mark.usefixtures("forked")

SILU = OPS["silu_and_mul"]

#: Kernels of silu_and_mul: right, and bad in each way, some from so many rows on.
KERNELS = """
import os, signal
from sglang_fl.ops import OPS

reference = OPS["silu_and_mul"].reference

def right(x):
    return reference(x)

def wrong_from_five_rows_on(x):
    return reference(x) * (1.1 if len(x) >= 5 else 1)

def wrong_in_the_last_row(x):
    result = reference(x)
    result[x[:, 0] > 90] = 7
    return result

def kills(x):
    if len(x) >= 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    return reference(x)

def raises(x):
    raise ValueError("not on this chip")
"""


@pytest.fixture
def kept(tmp_path: Path, monkeypatch) -> Any:
    """Return a function that keeps a call of one of ``KERNELS``; it does not run it."""
    (tmp_path / "kernels_to_keep.py").write_text(KERNELS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    keeper = KeptCalls(tmp_path / "calls")

    def keep(name: str, x: torch.Tensor) -> Path:
        impl = OpImpl("silu_and_mul", BackendKind.VENDOR, f"vendor.{name}", f"kernels_to_keep:{name}")
        keeper.wrap(SILU, impl, torch.nn.SiLU(), lambda x: SILU.reference(x))(x)
        return tmp_path / "calls"

    return keep


def toy(kernel: Any, folder: Path, each: bool = False, **room: int) -> Any:
    impl = OpImpl("silu_and_mul", BackendKind.VENDOR, "vendor.toy", "toy:kernel")
    return KeptCalls(folder, each, **room).wrap(SILU, impl, torch.nn.SiLU(), kernel)


def test_a_call_is_on_disk_before_its_kernel_runs_and_says_afterwards_that_it_came_back(tmp_path: Path):
    folder, during = tmp_path / "calls", []

    def kernel(x: torch.Tensor) -> torch.Tensor:
        during.extend(kept_files(folder))
        return SILU.reference(x)

    kernel = toy(kernel, folder)
    for rows in (3, 3, 4):
        kernel(torch.ones(rows, 8))
    assert [path.name for path in during] == [
        "0000-silu_and_mul.running.pt",
        "0000-silu_and_mul.pt",  # the second call has the shape of the first
        "0001-silu_and_mul.running.pt",
        "0000-silu_and_mul.pt",
    ]
    assert [path.name for path in kept_files(folder)] == ["0000-silu_and_mul.pt", "0001-silu_and_mul.pt"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept_files(folder)} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_kernel_that_raises_has_come_back(tmp_path: Path):
    def kernel(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("not on this chip")

    with pytest.raises(ValueError, match="not on this chip"):
        toy(kernel, tmp_path / "calls")(torch.ones(3, 8))
    assert [path.name for path in kept_files(tmp_path / "calls")] == ["0000-silu_and_mul.pt"]


def test_each_call_takes_the_place_of_the_one_before(tmp_path: Path):
    kernel = toy(SILU.reference, tmp_path / "calls", each=True)
    for value in (1.0, 2.0):
        kernel(torch.full((3, 8), value))
    (path,) = kept_files(tmp_path / "calls")
    (argument,) = unpacked(torch.load(path)["arguments"], "cpu").values()
    assert argument.unique().tolist() == [2.0]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).view(4, 6),
        torch.arange(24.0).view(4, 6)[1:, 1:3],
        torch.arange(24.0).view(4, 6).T[::2],
        torch.arange(6.0).expand(3, 6),
        torch.empty(0, 8),
        torch.tensor(3.0),
    ],
    ids=["dense", "part", "transposed", "expanded", "empty", "scalar"],
)
def test_memory_comes_back_with_its_strides_and_alignment(tensor: torch.Tensor):
    (back,) = unpacked(packed({"x": tensor}), "cpu").values()
    assert torch.equal(back, tensor)
    assert back.stride() == tensor.stride() or not tensor.numel()
    assert (back.storage_offset() - tensor.storage_offset()) % 64 == 0


def test_what_is_too_large_or_too_much_is_not_kept_and_said_once(tmp_path: Path, caplog):
    kernel = toy(SILU.reference, tmp_path / "calls", most=4096)  # a call may take 1024 of them
    for rows in (33, 34, 30, 31, 29, 28, 27, 26):  # 32 bytes each
        kernel(torch.ones(rows, 8))
    assert len(kept_files(tmp_path / "calls")) == 4
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "too large",
        "full, no further calls are kept",
    ]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")]
)
def test_a_disk_that_is_full_ends_no_request_and_leaves_no_half_a_file(
    error: Exception, tmp_path: Path, monkeypatch, caplog
):
    def save(content: object, file: Any) -> None:
        file.write(b"half of it")
        raise error

    kernel = toy(SILU.reference, tmp_path / "calls")
    kernel(torch.ones(2, 8))
    monkeypatch.setattr(torch, "save", save)
    for rows in (3, 4):
        assert torch.equal(kernel(torch.ones(rows, 8)), SILU.reference(torch.ones(rows, 8)))
    assert [path.name for path in (tmp_path / "calls").rglob("*.*")] == ["0000-silu_and_mul.pt"]
    (record,) = caplog.records
    assert f"no further calls are kept: {type(error).__name__}: {error}" in record.getMessage()


@pytest.mark.parametrize("is_during", [False, True], ids=["before", "during"])
def test_a_folder_that_is_gone_ends_no_request(is_during: bool, tmp_path: Path, caplog):
    def kernel(x: torch.Tensor) -> torch.Tensor:
        if is_during and len(x) == 3:
            shutil.rmtree(tmp_path / "calls")
        return SILU.reference(x)

    kept = toy(kernel, tmp_path / "calls")
    kept(torch.ones(2, 8))
    if not is_during:
        shutil.rmtree(tmp_path / "calls")
    for rows in (3, 4):
        assert torch.equal(kept(torch.ones(rows, 8)), SILU.reference(torch.ones(rows, 8)))
    assert ["no further calls are kept: FileNotFoundError" in r.getMessage() for r in caplog.records] == [
        True
    ]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="file"):
        KeptCalls(tmp_path / "file")


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    """Run calls here: a process for each takes seconds."""

    def run_python(code: str, seconds: float) -> Child:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(code, {})
        return Child(0, output.getvalue(), "")

    monkeypatch.setattr(command, "run_python", run_python)


@pytest.mark.parametrize(
    ("name", "now", "what", "fewest"),
    [
        ("right", "right", "", ""),
        ("wrong_from_five_rows_on", "wrong", "units of float32 from float64", "5 (from 0)"),
        ("wrong_in_the_last_row", "wrong", "units of float32 from float64", "1 (from 7)"),
        ("raises", "raised", "ValueError: not on this chip", "1 (from 0)"),
    ],
)
def test_replay_tells_what_a_call_does_and_how_few_rows_show_it(
    kept, in_this_process, name, now, what, fewest
):
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    x[-1, 0] = 99
    told: list[str] = []
    (row,), code = replay(kept(name, x), None, 20, told.append)
    assert code == (now != "right")
    assert (row["now"], row["came_back"], row["fewest_rows"]) == (now, True, fewest)
    assert told == [f"silu_and_mul {row['implementation']} (1 of 1)"]
    assert what in row["what"]


def test_a_kernel_that_kills_its_process_is_told_with_the_signal_and_the_first_that_never_came_back(kept):
    kept("right", torch.ones(1, 16))
    folder = kept("kills", torch.ones(2, 16))
    path = next(path for path in kept_files(folder) if "vendor.kills" in str(torch.load(path)))
    path.rename(path.with_name(path.name.replace(".pt", ".running.pt")))
    (killed, right), code = replay(folder, None, 120, print)
    assert code == 1
    assert (killed["now"], killed["what"], killed["came_back"]) == ("ends its process", "SIGSEGV", False)
    assert killed["fewest_rows"] == "2 (from 0)"
    assert right["now"] == "right"


def test_a_process_that_says_nothing_is_not_judged():
    assert command._answer(Child(None, "", ""), 5).state == "hangs"
    answer = command._answer(Child(1, "", "ImportError: no chip"), 5)
    assert (answer.state, answer.is_bad, answer.text) == ("not judged", False, "ImportError: no chip")


def test_replay_answers_programs_as_its_schema_says(kept, in_this_process, fits):
    kept("wrong_from_five_rows_on", torch.ones(8, 16))
    done = CliRunner().invoke(app, ["replay", str(kept("right", torch.ones(8, 16))), "--json"])
    rows = json.loads(done.stdout)
    assert [row["now"] for row in rows] == ["wrong", "right"]
    fits("replay", rows)


def test_replay_of_one_op_and_of_none(kept, in_this_process, tmp_path: Path):
    folder = kept("right", torch.ones(3, 8))
    assert replay(folder, "silu_and_mul", 60, print)[1] == 0
    assert replay(folder, "rms_norm", 60, print) == ([], 3)
    done = CliRunner().invoke(app, ["replay", str(tmp_path)])
    assert done.exit_code == 2
    assert "no kept calls. Start the server with SGLANG_FL_KEEP_CALLS=" in done.stderr


def a_call(**other: object) -> dict[str, object]:
    about = {"op": "relu2", "implementation": "x", "target": "x:y", "layer": "X", "device": "cpu"}
    return about | {"arguments": {"x": {"size": (2, 3)}}} | other


@pytest.mark.parametrize(
    "content",
    [
        b"nothing",
        b"",
        torch.ones(3),
        [1],
        {name: value for name, value in a_call().items() if name != "layer"},
        a_call(op="no_such"),
        a_call(arguments=[1]),
        a_call(arguments={"x": {"memory": 1}}),
        a_call(arguments={"x": {"size": ()}}),
        a_call(arguments={"x": {"size": 5}}),
    ],
    ids=lambda content: type(content).__name__,
)
def test_a_file_that_is_no_call_is_refused_by_name(content: object, tmp_path: Path):
    path = tmp_path / "process-1" / "0000-x.pt"
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(SettingsError, match=r"0000-x\.pt: no kept call: [^\n]*$"):
        replay(tmp_path, None, 5, print)

"""How a simulated chip is built, loaded, recorded and asked for."""

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sglang_fl.conformance.simulated import SimulatedChip, build, emulated, find_chip
from sglang_fl.errors import SettingsError, VendorError

pytestmark = pytest.mark.usefixtures("forked")

CHIP = SimulatedChip("toychip", "toyccl")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, in which ``CHIP`` can be loaded."""
    head = "import torch; from sglang_fl.conformance import simulated as s\n"
    head += "c = s.SimulatedChip('toychip', 'toyccl')\n"
    return subprocess.run(
        [sys.executable, "-c", head + code],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
    )


# Building


def build_into(folder: str, libraries: multiprocessing.Queue) -> None:
    libraries.put(build.library(Path(folder)))


@pytest.fixture
def small_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source that compiles in no time, in place of the chip's."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "chip.cpp").write_text('extern "C" int chip() { return 1; }\n')
    monkeypatch.setattr(build, "SOURCES", folder)
    return folder


def test_it_is_compiled_once_for_one_source(tmp_path: Path, small_source: Path):
    path = build.library(tmp_path / "cache")
    made = path.stat().st_mtime_ns
    assert build.library(tmp_path / "cache").stat().st_mtime_ns == made
    assert torch.__version__ in path.name
    (small_source / "chip.cpp").write_text('extern "C" int chip() { return 2; }\n')
    assert build.library(tmp_path / "cache") != path


def others_may_write(path: Path) -> None:
    path.chmod(0o777)


def of_another_user(path: Path) -> None:
    os.chown(path, 12345, 12345)


def a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("what", ["folder", "library"])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (others_may_write, "can be written by others"),
        (of_another_user, "belongs to the user 12345"),
        (a_link, "is a link"),
    ],
)
def test_what_another_user_could_have_made_is_not_loaded(
    tmp_path: Path, small_source: Path, spoil: Callable[[Path], None], reason: str, what: str
):
    if spoil is of_another_user and os.geteuid() != 0:
        pytest.skip("only root gives files away")
    folder = tmp_path / "cache"
    path = build.library(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    spoil(folder if what == "folder" else path)
    with pytest.raises(SettingsError, match=reason):
        build.library(folder)


def test_processes_that_build_at_once_share_one_library(tmp_path: Path, small_source: Path):
    fork = multiprocessing.get_context("fork")
    libraries = fork.Queue()
    children = [fork.Process(target=build_into, args=(str(tmp_path / "cache"), libraries)) for _ in range(4)]
    for child in children:
        child.start()
    paths = {libraries.get(timeout=60) for _ in children}
    for child in children:
        child.join()
    assert len(paths) == 1
    assert sorted(file.suffix for file in (tmp_path / "cache").iterdir()) == [".lock", ".so"]


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        SettingsError, match=r"none of c\+\+, g\+\+, clang\+\+ is on PATH. Install a C\+\+ compiler"
    ):
        build.library(tmp_path / "cache")


def test_the_compilers_words_are_passed_on_and_nothing_is_left_behind(tmp_path: Path, small_source: Path):
    (small_source / "chip.cpp").write_text("int chip(;\n")
    with pytest.raises(SettingsError, match=r"(?s)does not compile for torch .* says:.*error: expected"):
        build.library(tmp_path / "cache")
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".lock"]


# Loading


@pytest.mark.parametrize("name", ["cpu", "cuda", "two words"])
def test_a_name_that_no_device_can_have_is_refused(name):
    with pytest.raises(VendorError, match="cannot be the name of a device"):
        SimulatedChip(name, "toyccl")


def test_a_process_has_one_chip():
    done = python("s.load(c); s.load(c); assert s.loaded_chip() is c; s.load(s.SimulatedChip('mlu', 'cncl'))")
    assert "SettingsError: this process simulates toychip already, not mlu" in done.stderr


def test_a_real_device_is_not_hidden():
    done = python("torch.utils.rename_privateuse1_backend('npu'); s.load(c)")
    assert "SettingsError: toychip cannot be simulated: this process has a real npu device" in done.stderr


def test_a_chip_that_nobody_offers_is_refused():
    with pytest.raises(SettingsError, match=r"SGLANG_FL_SIMULATED='mlv': no installed vendor package offers"):
        find_chip("mlv")


@pytest.mark.parametrize(("name", "package"), [("mlu", "mlu"), ("cambricon", "mlu"), ("npu", "ascend")])
def test_a_chip_whose_package_is_not_installed_is_refused_with_the_remedy(name: str, package: str):
    with pytest.raises(SettingsError, match=f"pip install sglang-fl-{package}, or unset it"):
        find_chip(name)


def test_nothing_is_loaded_unless_it_is_asked_for():
    code = "from sglang_fl.startup import configure; configure()\n"
    code += "print(torch._C._get_privateuse1_backend_name())"
    assert python(code).stdout == "privateuseone\n"


# The record


def test_the_record_names_each_thing_once_and_not_what_an_emulated_kernel_does(tmp_path: Path):
    record = tmp_path / "record.txt"
    code = f"""
from pathlib import Path
s.load(c, Path({str(record)!r}))
x = torch.ones(3, 3, device="toychip")
for _ in range(2):
    x @ x
    torch.toychip.synchronize()
hasattr(torch.toychip, "Graph")
assert float(s.emulated(lambda x: x.cos() * 0)(x).cpu().sum()) == 0
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    lines = record.read_text().splitlines()
    assert len(lines) == len(set(lines))
    assert {"aten::mm.out", "torch.toychip.synchronize", "torch.toychip.Graph missing"} < set(lines)
    assert not [line for line in lines if "cos" in line or "mul" in line]


def test_a_record_that_cannot_be_written_is_refused(tmp_path: Path):
    done = python(f"from pathlib import Path; s.load(c, Path({str(tmp_path / 'no' / 'record')!r}))")
    assert "the file cannot be opened for appending (No such file or directory)" in done.stderr


# Emulated kernels


@emulated
def scale_in_place(
    x: torch.Tensor, factor: torch.Tensor, by: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    x.mul_(factor * by)
    return x, x.sum()


@pytest.mark.on_chip(CHIP)
def test_an_emulated_kernel_writes_in_place_and_returns_what_it_was_given():
    x, factor = torch.ones(4, device="toychip"), torch.full((1,), 2.0, device="toychip")
    same, total = scale_in_place(x[1:], factor, by=3)
    assert x.cpu().tolist() == [1, 6, 6, 6]
    assert same.data_ptr() == x[1:].data_ptr()
    assert (total.device.type, float(total)) == ("toychip", 18.0)


@pytest.mark.on_chip(CHIP)
def test_an_emulated_kernel_refuses_the_hosts_tensors():
    with pytest.raises(RuntimeError, match="simulated toychip: scale_in_place got a tensor on cpu"):
        scale_in_place(torch.ones(4, device="toychip"), torch.ones(1))


# Collectives


def collect(rank: int, port: int, results: multiprocessing.Queue) -> None:
    from sglang_fl.conformance.simulated import load

    load(CHIP)
    torch.toychip.set_device(rank)
    dist.init_process_group("toyccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    own = torch.full((2,), float(rank + 1), device="toychip")
    summed, gathered = own.clone(), torch.empty(4, device="toychip")
    scattered, sent = torch.empty(1, device="toychip"), own.clone()
    dist.all_reduce(summed)
    dist.all_gather_into_tensor(gathered, own)
    dist.reduce_scatter_tensor(scattered, own)
    dist.broadcast(sent, src=1)
    exchanged = torch.empty_like(own)
    dist.all_to_all_single(exchanged, own)
    dist.barrier()
    try:
        dist.all_reduce(own.cpu())
    except RuntimeError as error:
        refusal = str(error)
    results.put(
        (
            rank,
            [t.cpu().tolist() for t in (summed, gathered, scattered, sent, exchanged)],
            refusal,
            own.device.index,
        )
    )
    dist.destroy_process_group()


def test_collectives_of_two_ranks():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    children = [spawn.Process(target=collect, args=(rank, port, results)) for rank in range(2)]
    for child in children:
        child.start()
    answers = sorted(results.get(timeout=120) for _ in children)
    for child in children:
        child.join()
    expected = [[3, 3], [1, 1, 2, 2], [3], [2, 2], [1, 2]]
    assert [answer[1] for answer in answers] == [expected, expected]
    assert [answer[3] for answer in answers] == [0, 1]
    assert "allreduce of toyccl got a tensor on cpu" in answers[0][2]


@pytest.mark.parametrize(
    ("source", "cause"),
    [("def CHIP(:", "SyntaxError"), ("raise RuntimeError('no driver')", "RuntimeError: no driver")],
)
def test_package_that_cannot_be_imported_is_named(install, site: Path, source: str, cause: str):
    install("toy", source)
    points = site / "sglang_fl_toy-0.0.1.dist-info" / "entry_points.txt"
    points.write_text(points.read_text().replace("sglang_fl.vendors", "sglang_fl.simulated"))
    message = rf"SGLANG_FL_SIMULATED='toy': sglang-fl-toy 0\.0\.1 cannot be imported: {cause}"
    with pytest.raises(VendorError, match=message):
        find_chip("toy")

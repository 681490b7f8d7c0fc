"""Doctor, where a start with tp > 1 hangs: devices, heads, ports, interfaces, and the all-reduce itself."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from doctor_rows import Doctor, only_problem
from sglang_fl.cli import app
from sglang_fl.diagnostics.doctor.collective import RANK
from sglang_fl.diagnostics.doctor.network import _nccl

pytestmark = pytest.mark.usefixtures("forked")

Install = Callable[..., str]

#: A chip that PyTorch knows and this machine has not.
ABSENT = """
from sglang_fl.vendor import Vendor

CHIP = Vendor("toy", "cuda", 1, "sglang_fl.registry.cpu:why_unavailable")
"""


def model(folder: Path, **config: object) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_too_few_devices_are_found(doctor: Doctor, install: Install, monkeypatch):
    install("toy", ABSENT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    row = only_problem(doctor("--tp", "2", "--only", "devices"), "devices")
    assert "--tp needs 2 of type cuda on this machine, PyTorch sees 0" in row["text"]
    assert "check the driver" in row["remedy"]


@pytest.fixture
def jit(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of the absent chip on which SGLang has compiled nothing; returns where it would keep it."""
    install("toy", ABSENT)
    monkeypatch.setenv("SGLANG_JIT_CACHE_DIR", str(tmp_path / "jit"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    return tmp_path / "jit"


def all_reduce(doctor: Doctor) -> dict[str, str]:
    _, rows = doctor("--tp", "2", "--only", "collective-kernels")
    return rows["kernels of the all-reduce"]


def test_no_compiler_for_the_kernels_of_the_all_reduce_is_found(doctor: Doctor, jit: Path):
    row = all_reduce(doctor)
    assert row["state"] == "problem"
    assert f"there is no {jit.parent}/cuda/bin/nvcc" in row["text"]
    assert "CUDA_HOME" in row["remedy"]


def test_a_first_start_that_compiles_the_all_reduce_is_told(doctor: Doctor, jit: Path):
    compiler = jit.parent / "cuda/bin/nvcc"
    compiler.parent.mkdir(parents=True)
    compiler.touch()
    row = all_reduce(doctor)
    assert row["state"] == "ok"
    assert f"the first start compiles them by {compiler} for minutes" in row["text"]
    built = jit / "cuda_13.0_sm90/cuda_ipc/build-1f/deps-2e/cuda_ipc.so"
    built.parent.mkdir(parents=True)
    built.touch()
    assert all_reduce(doctor)["text"] == f"compiled before, in {jit}"


def test_visible_devices_that_are_too_few_are_named(doctor: Doctor, install: Install, monkeypatch):
    install("toy", ABSENT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "99")
    row = only_problem(doctor("--tp", "2", "--only", "devices"), "devices")
    assert "CUDA_VISIBLE_DEVICES='99' shows only these" in row["text"]
    assert "name 2 devices in CUDA_VISIBLE_DEVICES" in row["remedy"]


def test_cores_that_are_not_given_to_each_rank_are_found(doctor: Doctor, monkeypatch):
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0")
    row = only_problem(doctor("--tp", "2", "--only", "numa"), "cores")
    assert "1 lists of cores for 2 ranks" in row["text"]
    assert 'SGLANG_CPU_OMP_THREADS_BIND="' in row["remedy"]
    monkeypatch.delenv("SGLANG_CPU_OMP_THREADS_BIND")
    row = only_problem(doctor("--tp", "1024", "--only", "numa"), "cores")
    assert "a NUMA node for each of 1024 ranks" in row["text"]
    assert 'SGLANG_CPU_OMP_THREADS_BIND="' in row["remedy"]


@pytest.mark.parametrize(("heads", "kv", "tp"), [(14, 2, 4), (12, 3, 2), (6, 4, 3)])
def test_heads_that_do_not_divide_are_found(doctor: Doctor, tmp_path: Path, heads: int, kv: int, tp: int):
    folder = model(tmp_path / "m", num_attention_heads=heads, num_key_value_heads=kv)
    row = only_problem(doctor("--model", folder, "--tp", str(tp), "--only", "heads"), "heads")
    assert f"{heads} query and {kv} key-value heads cannot be spread over {tp} ranks" in row["text"]
    sizes = row["remedy"].removeprefix("--tp must be one of ").split(", ")
    assert str(tp) not in sizes
    assert doctor("--model", folder, "--tp", sizes[-1], "--only", "heads")[0] == 0


def test_heads_of_the_text_part_count(doctor: Doctor, tmp_path: Path):
    text = {"num_attention_heads": 6, "num_key_value_heads": 2}
    folder = model(tmp_path / "m", num_attention_heads=16, text_config=text)
    only_problem(doctor("--model", folder, "--tp", "4", "--only", "heads"), "heads")


def test_model_that_is_not_here_cannot_be_told_of(doctor: Doctor, tmp_path: Path):
    code, rows = doctor("--model", str(tmp_path / "none"), "--tp", "2", "--only", "heads")
    assert (code, rows["heads"]["state"]) == (2, "unknown")
    assert "config.json" in rows["heads"]["text"]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_port_in_use_is_found_with_its_holder(doctor: Doctor, taken: int):
    row = only_problem(doctor("--port", str(taken), "--only", "ports"), "--port")
    assert f"port {taken} is not available: Address already in use (process {os.getpid()}, " in row["text"]
    assert "--port" in row["remedy"]
    row = only_problem(doctor("--nccl-port", str(taken), "--only", "ports", "--tp", "2"), "--nccl-port")
    assert row["remedy"].startswith("leave it out")


def test_master_port_in_use_is_found(doctor: Doctor, taken: int, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", str(taken))
    row = only_problem(doctor("--tp", "2", "--only", "rendezvous"), "MASTER_PORT")
    assert row["remedy"].startswith("unset it")
    monkeypatch.setenv("MASTER_PORT", "many")
    assert "is no port" in only_problem(doctor("--tp", "2", "--only", "rendezvous"), "MASTER_PORT")["text"]


@pytest.mark.parametrize(
    ("address", "text"), [("no-port", "host:port"), ("no-such-host.invalid:20000", "not found")]
)
def test_address_where_no_rank_can_be_met_is_found(doctor: Doctor, address: str, text: str):
    row = only_problem(doctor("--dist-init-addr", address, "--only", "rendezvous"), "--dist-init-addr")
    assert text in row["text"]
    assert doctor("--dist-init-addr", "127.0.0.1:20000", "--only", "rendezvous")[0] == 0


@pytest.mark.parametrize("name", ["NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"])
def test_interface_that_does_not_exist_is_found(doctor: Doctor, monkeypatch, name: str):
    monkeypatch.setenv(name, "nosuch0")
    row = only_problem(doctor("--only", "interfaces"), name)
    assert f"{name}='nosuch0' names no interface" in row["text"]
    assert f"unset {name}" in row["remedy"]
    monkeypatch.setenv(name, "lo")
    assert doctor("--only", "interfaces")[0] == 0


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("eth", ["eth0", "eth1"]),
        ("=eth", []),
        ("=eth1", ["eth1"]),
        ("^eth", ["lo"]),
        ("^=lo", ["eth0", "eth1"]),
    ],
)
def test_interfaces_are_chosen_as_nccl_does(text: str, chosen: list[str]):
    assert _nccl(text, ["eth0", "eth1", "lo"]) == chosen


def test_variables_of_another_launcher_are_found(doctor: Doctor, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    code, rows = doctor("--tp", "2", "--only", "variables-of-collectives")
    assert only_problem((code, rows), "ranks")["remedy"] == "unset WORLD_SIZE"
    assert rows["NCCL_*, GLOO_*"]["text"] == "NCCL_DEBUG=INFO"


def ranks_running() -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if RANK in (p.info["cmdline"] or ())]


def test_two_ranks_add_up(doctor: Doctor, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    code, rows = doctor("--tp", "2", "--only", "collective")
    assert code == 0, rows
    assert rows["all-reduce over 2 processes"]["text"].startswith("right, on cpu")
    assert not ranks_running()


def test_interface_that_breaks_the_all_reduce_is_found(doctor: Doctor, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    row = only_problem(doctor("--tp", "2", "--only", "collective"), "all-reduce over 2 processes")
    assert "failed after 'started'" in row["text"]
    assert "nosuch0" in row["text"]
    assert "unset GLOO_SOCKET_IFNAME" in row["remedy"]


def test_rank_that_still_imports_is_no_hang(doctor: Doctor, site: Path, monkeypatch):
    (site / "sitecustomize.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *sys.path]))
    code, rows = doctor("--tp", "2", "--probe-seconds", "1", "--only", "collective")
    row = rows["all-reduce over 2 processes"]
    assert (code, row["state"]) == (2, "unknown")
    assert "have not begun" in row["text"]
    assert row["remedy"] == "give it more time: --probe-seconds 2"
    assert not ranks_running()


#: Python imports this at its start: rank 1 meets the others and then never adds up.
STUCK = """
import sys, time

if sys.orig_argv[-4:-3] == ["1"]:
    import torch.distributed

    torch.distributed.all_reduce = lambda *args, **kwargs: time.sleep(600)
"""


def test_rank_that_hangs_is_found_and_leaves_no_process(doctor: Doctor, site: Path, monkeypatch):
    (site / "sitecustomize.py").write_text(STUCK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *sys.path]))
    start = time.monotonic()
    told = doctor("--tp", "2", "--probe-seconds", "12", "--only", "collective")
    assert time.monotonic() - start < 24
    row = only_problem(told, "all-reduce over 2 processes")
    assert row["text"].startswith("hangs: not done after 12 s (rank 0: ")
    assert "firewall" in row["remedy"]
    assert not ranks_running()


def test_ranks_that_still_import_are_not_said_to_hang(doctor: Doctor, site: Path, monkeypatch):
    (site / "sitecustomize.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *sys.path]))
    code, rows = doctor("--tp", "2", "--probe-seconds", "1", "--only", "collective")
    (row,) = rows.values()
    assert (code, row["state"]) == (2, "unknown")
    assert (
        "the ranks have not begun (rank 0: Python and PyTorch are being imported; rank 1: Python"
        in row["text"]
    )
    assert "--probe-seconds" in row["remedy"]
    assert not ranks_running()


@pytest.mark.parametrize(
    "words", [["--probe-seconds", "-1"], ["--probe-seconds", "0"], ["--port", "99999"], ["--tp", "0"]]
)
def test_arguments_that_cannot_be_are_refused(words: list[str]):
    said = CliRunner().invoke(app, ["doctor", "--only", "ports", *words])
    assert said.exit_code == 2
    assert words[0] in said.stderr


def test_nothing_to_look_at_is_no_good_news(doctor: Doctor):
    code, rows = doctor("--only", "collective", "--only", "heads")
    assert (code, {row["state"] for row in rows.values()}) == (2, {"unknown"})


@pytest.mark.parametrize("port", ["99999", "0", "-1", "\u0663", "9" * 5000, ""])
def test_a_port_that_is_none_is_found(doctor: Doctor, monkeypatch, port: str):
    row = only_problem(
        doctor("--dist-init-addr", f"127.0.0.1:{port}", "--only", "rendezvous"), "--dist-init-addr"
    )
    assert "with a port from 1 to 65535" in row["text"]
    monkeypatch.setenv("MASTER_PORT", port or "x")
    row = only_problem(doctor("--tp", "2", "--only", "rendezvous"), "MASTER_PORT")
    assert "is no port from 1 to 65535" in row["text"]


def interrupted(code):
    """Start Python code that is ended by the first interrupt."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_ctrl_c_leaves_no_child():
    code = (
        "from sglang_fl.diagnostics.doctor.child import run_python\n"
        "print('asked', flush=True)\n"
        "run_python('import time; time.sleep(90) # left over', 100)\n"
    )
    process = interrupted(code)
    assert process.stdout
    process.stdout.readline()
    deadline = time.monotonic() + 20
    while not psutil.Process(process.pid).children() and time.monotonic() < deadline:
        time.sleep(0.05)
    (child,) = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    process.wait(20)
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running()


def test_ctrl_c_while_a_child_is_being_started_leaves_none():
    code = (
        "import os, signal, subprocess\n"
        "from sglang_fl.diagnostics.doctor.child import run_python\n"
        "start = subprocess.Popen._execute_child\n"
        "def interrupted_start(process, *arguments):\n"
        "    start(process, *arguments)\n"
        "    print(process.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "subprocess.Popen._execute_child = interrupted_start\n"
        "run_python('import time; time.sleep(90) # left over', 100)\n"
    )
    process = interrupted(code)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert not psutil.pid_exists(int(output))

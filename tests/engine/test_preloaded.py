"""Programs that are forked from a server: they find what a fresh interpreter finds, and end as it does."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.engine.fake_vendor import install_vendor
from tests.forked import Server, run
from tests.preloaded import THIRD_PARTY
from tests.programs import server_of_forks, server_with_sglang

pytestmark = pytest.mark.timeout(300)

#: ``.pth`` files of third-party packages reorder the rest of the path.
SHOW = """
import os, sys

print(sys.argv, sys.path[0], sorted({*sys.path}), sorted(os.environ), os.getcwd(), __name__)
"""
SPAWN = """
import multiprocessing, os, sys

def child(queue):
    loaded = [name for name in sys.modules if name.partition(".")[0] in ("sglang", "sglang_fl")]
    queue.put((os.getppid(), os.environ["SET_LATE"], "torch" in sys.modules, loaded))
    sys.exit(7)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    os.environ["SET_LATE"] = "yes"
    process = context.Process(target=child, args=(queue,))
    process.start()
    parent, late, is_preloaded, loaded = queue.get()
    process.join()
    print(parent == os.getpid(), late, is_preloaded, loaded, process.exitcode)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    ours = ("SGLANG_", "USE_FLAGGEMS")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    folder = tmp_path_factory.mktemp("of-the-program")
    return {**clean, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def server() -> Server:
    return server_of_forks()


@pytest.fixture(scope="module")
def with_sglang() -> Server:
    return server_with_sglang("")


def test_nothing_of_sglang_and_nothing_of_ours_is_preloaded():
    assert not [name for name in THIRD_PARTY if name.startswith("sglang")]


@pytest.mark.parametrize("how", ["-c", "-m", "script"])
def test_a_program_finds_what_a_fresh_interpreter_finds(server, environment, tmp_path: Path, how: str):
    (tmp_path / "shown.py").write_text(SHOW)
    words = {"-c": ["-c", SHOW], "-m": ["-m", "shown"], "script": [str(tmp_path / "shown.py")]}[how]
    command = [sys.executable, *words, "--flag", "x"]
    fresh = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    code, output = run(server, command, environment, tmp_path, timeout=60)
    assert (code, output) == (0, fresh)


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        ("import sys; sys.exit(3)", 3, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, ""),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import signal; signal.raise_signal(signal.SIGINT)", -2, "KeyboardInterrupt"),
        ("import sys; sys.exit('the reason')", 1, "the reason"),
        ("import atexit; atexit.register(print, 'the end')", 0, "the end"),
        ("import threading; threading.Timer(0.2, print, ['last word']).start()", 0, "last word"),
    ],
    ids=["exit", "signal", "error", "ctrl-c", "message", "atexit", "thread"],
)
def test_a_program_ends_as_it_would_elsewhere(server, environment, code: str, expected: int, said: str):
    ended, output = run(server, [sys.executable, "-c", code], environment, Path.cwd(), timeout=60)
    assert ended == expected, output
    assert said in output


def test_a_spawned_child_is_preloaded_and_is_the_programs_own(server, environment, tmp_path: Path):
    script = tmp_path / "spawns.py"
    script.write_text(SPAWN)
    code, output = run(server, [sys.executable, str(script)], environment, tmp_path, timeout=60)
    assert (code, output) == (0, "True yes True [] 7\n")


#: Prints the server's process.
SERVER = "import os; print(os.getppid())"


@pytest.mark.parametrize("has_sglang", [False, True])
def test_who_gives_the_same_name_shares_the_server(server, with_sglang, environment, has_sglang: bool):
    another = Server(environment, name=server.name)
    pair = (with_sglang, another.with_sglang()) if has_sglang else (server, another)
    command = [sys.executable, "-c", SERVER]
    (code, first), (_, second) = (run(each, command, environment, Path.cwd(), timeout=60) for each in pair)
    assert code == 0
    assert first == second


def test_a_program_that_takes_too_long_is_killed_with_its_children(server, environment):
    code = (
        "import subprocess, time; print(subprocess.Popen(['sleep', '100']).pid, flush=True); time.sleep(100)"
    )
    with pytest.raises(subprocess.TimeoutExpired) as error:
        run(server, [sys.executable, "-c", code], environment, Path.cwd(), timeout=3)
    deadline = time.monotonic() + 30
    while is_running(error.value.output.decode().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(process: str) -> bool:
    try:
        return Path("/proc", process, "stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_a_variable_that_libraries_have_read_already_is_refused(server, environment):
    with pytest.raises(ValueError, match="OMP_WAIT_POLICY='OTHER': the server of forks has read"):
        server.start([sys.executable], 1, {**environment, "OMP_WAIT_POLICY": "OTHER"}, Path.cwd())


def test_another_copy_of_what_is_preloaded_is_refused(server, environment, tmp_path: Path):
    (tmp_path / "transformers").mkdir()
    with pytest.raises(ValueError, match="its transformers is another than the one preloaded"):
        server.start([sys.executable], 1, {**environment, "PYTHONPATH": str(tmp_path)}, Path.cwd())


#: What a program sees of its settings; it has SGLang loaded and did not import it.
TELL = """
import sys
from sglang.srt.platforms import current_platform
from sglang_fl.startup import configure

policy = configure().settings.policy
print(policy.prefer, policy.strict, type(current_platform).__name__, len(sys.modules) > 3000)
"""


@pytest.mark.parametrize(
    ("settings", "told"),
    [({}, "flagos False"), ({"SGLANG_FL_PREFER": "reference", "SGLANG_FL_STRICT": "1"}, "reference True")],
    ids=["defaults", "others"],
)
def test_a_program_with_sglang_loaded_has_settings_of_its_own(with_sglang, environment, settings, told: str):
    command = [sys.executable, "-c", TELL]
    code, output = run(with_sglang, command, environment | settings, Path.cwd(), timeout=60)
    assert (code, output.splitlines()[-1]) == (0, f"{told} CpuPlatform True")


def test_a_wrong_setting_ends_a_program_with_sglang_loaded(with_sglang, environment):
    wrong = environment | {"SGLANG_FL_PREFER": "flagso"}
    code, output = run(with_sglang, [sys.executable, "-c", TELL], wrong, Path.cwd(), timeout=60)
    assert code == 2
    assert output.startswith("sglang-fl: SGLANG_FL_PREFER='flagso': no such backend kind.")


def test_a_program_for_another_platform_than_sglang_was_loaded_for_is_refused(
    with_sglang, environment, tmp_path: Path
):
    vendor = (Path(__file__).parent / "toy_vendor.py").read_text()
    vendor = vendor.replace("sglang_fl.sglang_adapter.cpu_platform.CpuPlatform", "sglang_fl.platform.NotCuda")
    install_vendor(tmp_path, "toy", vendor)
    other = environment | {"PYTHONPATH": str(tmp_path), "SGLANG_FL_PLATFORM": "toy"}
    code, output = run(with_sglang, [sys.executable, "-c", TELL], other, Path.cwd(), timeout=60)
    assert code == 1
    assert "this program's platform is another" in output


#: Hooks a function that many modules have imported by name, twice, and one of a module that is loaded now.
HOOK = """
import sys, types
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.utils.common import add_prefix

late, user = types.ModuleType("late"), types.ModuleType("user")
exec("def compute(): return 0", vars(late))
user.compute, user.add_prefix = late.compute, add_prefix
sys.modules |= {"late": late, "user": user}

def holders(function):
    modules = [(name, list(vars(module).values())) for name, module in sys.modules.items()]
    return sorted(name for name, values in modules if any(each is function for each in values))

def hook(target):
    module, _, name = target.rpartition(".")
    original = getattr(sys.modules[module], name)
    before = holders(original)
    HookRegistry.reset()
    HookRegistry.register(target, lambda call, *args: call(*args), HookType.AROUND)
    HookRegistry.apply_hooks()
    return len(before), holders(original), holders(getattr(sys.modules[module], name)) == before

for target in ("sglang.srt.utils.common.add_prefix", "sglang.srt.utils.common.add_prefix", "late.compute"):
    print(*hook(target))
"""


def test_a_function_is_hooked_wherever_it_was_imported(with_sglang, environment):
    command = [sys.executable, "-c", HOOK]
    code, output = run(with_sglang, command, environment, Path.cwd(), timeout=60)
    assert code == 0, output
    (count, *often), again, late = (line.split() for line in output.splitlines()[-3:])
    assert int(count) > 50
    assert [often, again, late] == [["[]", "True"], [count, "[]", "True"], ["2", "[]", "True"]]


#: What SGLang makes of a variable that it reads when an engine starts.
READ_LATER = """
from sglang.srt.configs.mamba_utils import mamba2_state_dtype

print(mamba2_state_dtype().conv)
"""


def test_a_variable_that_sglang_reads_later_is_that_of_the_program(with_sglang, environment):
    told = set()
    for kind in ("float32", "float16"):
        setting = environment | {"SGLANG_MAMBA_CONV_DTYPE": kind}
        code, output = run(with_sglang, [sys.executable, "-c", READ_LATER], setting, Path.cwd(), timeout=60)
        told.add((code, output))
    assert told == {(0, "torch.float32\n"), (0, "torch.float16\n")}


def test_a_variable_that_sglang_has_read_already_is_refused(with_sglang, environment):
    with pytest.raises(ValueError, match="SGLANG_USE_AITER='1': the server of forks has read None"):
        with_sglang.start([sys.executable], 1, {**environment, "SGLANG_USE_AITER": "1"}, Path.cwd())

"""Start Python programs from a server that has third-party modules loaded: seconds less for each process.

SGLang's engine is at least three processes, and each needs 9 to 10 s of processor time to import torch,
transformers, Triton and the like, before 3 s for SGLang and the plugin. Here the former is done once:

1. ``Server`` starts this file as a process. It imports ``THIRD_PARTY`` and waits for requests.
2. For each program it forks twice: an attendant, which waits for the program and passes its exit code on, and
   the program. That takes its output, environment, folder, ``sys.path`` and ``sys.argv`` as a fresh
   interpreter would, in a session of its own.
3. Before the program runs it forks once more: its twin, which never imports anything.
4. Where ``multiprocessing`` would execute Python anew to spawn a child, the program asks its twin for a fork.
   The twin forks by way of a process in between that ends at once. The program has declared itself the reaper
   of such orphans, so the child is its own: SGLang sends signals to its parent, waits for its children, and
   ends those that it finds below itself.

SGLang and this project's packages are imported afresh in each process, unless the server ``has_sglang``. Then
SGLang is loaded as a scheduler has it before it loads plugins. While SGLang is imported it asks this project
for its platform, and that is all that is kept for the life of a process: a program asks again under its own
settings, and ends where the platform is another one. A variable of SGLang that differs is refused.

What differs from a real start: variables that libraries read when they are loaded must be those of the
server (another value is refused), and ``/proc/PID/cmdline`` is a title. Ctrl-C (``test_bisect``), a refused
start (``test_start_up``), the HTTP server and the demo are tested with processes that are really started.
"""

import contextlib
import copy
import ctypes
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["OURS", "SGLANG_READS", "Program", "Server", "run"]

#: Modules that SGLang's processes import; none is SGLang's and none ours. What is missing is left out.
THIRD_PARTY = (
    *("torch", "torch.distributed.tensor", "torch._dynamo.testing", "torch._inductor.compile_fx"),
    *("torch.distributed.checkpoint", "torch.distributed.device_mesh", "torchvision", "torchaudio"),
    *("transformers", "transformers.models.auto.modeling_auto", "transformers.models.auto.processing_auto"),
    *("transformers.models.whisper.modeling_whisper", "transformers.models.mllama.modeling_mllama"),
    *("transformers.models.llama4.modeling_llama4", "transformers.models.siglip.modeling_siglip"),
    *("transformers.models.clip.modeling_clip", "transformers.models.parakeet.modeling_parakeet"),
    *("triton", "triton_kernels", "sympy", "networkx", "scipy.stats", "numpy", "einops", "PIL.Image"),
    *("flashinfer.comm", "xgrammar", "compressed_tensors", "mistral_common", "gguf", "timm", "torchcodec"),
    *("openai", "aiohttp.web", "fastapi", "uvicorn", "uvloop", "pydantic", "pydantic_settings", "msgspec"),
    *("huggingface_hub", "fsspec", "requests", "orjson", "zmq.asyncio", "jsonschema", "partial_json_parser"),
    *(
        "IPython.display",
        "dotenv",
        "psutil",
        "setproctitle",
        "pybase64",
        "torch_memory_saver",
        "quack.rmsnorm",
    ),
)
#: What a scheduler and a detokenizer import beside them; the registry imports the files of all models.
SGLANG = (
    *("sglang", "sglang.srt.managers.scheduler", "sglang.srt.managers.detokenizer_manager"),
    "sglang.srt.models.registry",
)
#: Beginnings of variables that libraries read when they are loaded, and of those that Python reads.
READ_ON_LOADING = (
    *("OMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTORCH_", "TRITON_", "CUDA_", "HF_", "TRANSFORMERS_"),
    *("TOKENIZERS_", "LD_", "PYTHON"),
)
#: Of these, what a program may have as it likes.
TAKEN_ANEW = ("PYTHONPATH", "PYTHONUNBUFFERED")
#: Beginnings of variables that SGLang reads when it is loaded, and of those that this project reads anew.
SGLANG_READS, OURS = ("SGL", "FLA_"), ("SGLANG_FL_", "SGLANG_FLAGGEMS_")
MESSAGE = 1 << 18
_asked_while_loading = ""
_of_modules: set[int] = set()
PR_SET_CHILD_SUBREAPER = 36


class Server:
    """A process with modules loaded, from which programs are forked; it ends with this one.

    Parameters
    ----------
    environment : of the server itself: what libraries read when they are loaded
    path : folders with third-party modules that go before those of the environment
    """

    has_sglang = False

    def __init__(self, environment: Mapping[str, str], path: Sequence[Path] = ()) -> None:
        self._environment = dict(environment)
        self._path = [str(folder) for folder in path]
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control = mine
        with its:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(its.fileno())],
                env={**environment, "PYTHONPATH": os.pathsep.join(self._path)},
                stdin=subprocess.DEVNULL,
                pass_fds=(its.fileno(),),
                start_new_session=True,
            )

    def with_sglang(self, simulated: str = "") -> "Server":
        """Return a server forked from this one that has SGLang loaded too, on a simulated chip or the CPU."""
        server = copy.copy(self)
        server.has_sglang = True
        server._control, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            _send(self._control, {"simulated": simulated}, [its.fileno()])
        return server

    def start(
        self, command: Sequence[str], output: int, environment: Mapping[str, str], folder: Path
    ) -> "Program":
        """Start a program.

        Parameters
        ----------
        command : ``[python, "-c", code, ...]``, ``[python, "-m", module, ...]`` or ``[python, script, ...]``
        output : a descriptor for standard output and error
        environment : all variables of the program
        folder : the working directory

        Raises
        ------
        ValueError : a variable differs that is read before the program starts
        """
        self._require_same(environment)
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {"command": list(command), "environment": dict(environment), "folder": str(folder)}
        with its:
            _send(self._control, request, [its.fileno(), output])
        return Program(list(command), mine)

    def _require_same(self, environment: Mapping[str, str]) -> None:
        beginnings = (*READ_ON_LOADING, *(SGLANG_READS if self.has_sglang else ()))
        for name in sorted({*environment, *self._environment}):
            is_read = name.startswith(beginnings) and not name.startswith(OURS)
            its, wanted = self._environment.get(name), environment.get(name)
            if is_read and name not in TAKEN_ANEW and its != wanted:
                raise ValueError(f"{name}={wanted!r}: the server of forks has read {its!r} already")
        folders = {*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))}
        for folder in sorted(folders - {*self._path}):
            for name in {module.partition(".")[0] for module in THIRD_PARTY}:
                if Path(folder, name).exists():
                    raise ValueError(f"PYTHONPATH={folder!r}: its {name} is another than the one preloaded")


class Program:
    """A program that a server has forked; what is needed of ``subprocess.Popen``.

    Parameters
    ----------
    args : its command line
    connection : to its attendant
    """

    def __init__(self, args: list[str], connection: socket.socket) -> None:
        self.args = args
        self.returncode: int | None = None
        self._connection = connection
        self.pid = self._hear()

    def _hear(self) -> int:
        message, _ = _receive(self._connection)
        if message is None:
            raise RuntimeError("the server of forks has died; its error is in the output of these tests")
        number: int = message
        return number

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit code; that of a signal is negative.

        Raises
        ------
        subprocess.TimeoutExpired : it runs still
        """
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = self._hear()
            self._connection.close()
        return self.returncode


def run(
    server: Server, command: Sequence[str], environment: Mapping[str, str], folder: Path, timeout: float
) -> tuple[int, str]:
    """Run a program until it and all that have its output have ended; return exit code and output.

    Raises
    ------
    subprocess.TimeoutExpired : it took too long and was killed
    """
    ours, its = os.pipe()
    try:
        program = server.start(command, its, environment, folder)
    finally:
        os.close(its)
    deadline, output = time.monotonic() + timeout, b""
    with os.fdopen(ours, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0, deadline - time.monotonic()))[0]:
            part = pipe.read(1 << 16)
            if not part:
                return program.wait(timeout), output.decode(errors="replace")
            output += part
    os.killpg(program.pid, signal.SIGKILL)
    raise subprocess.TimeoutExpired(list(command), timeout, output)


def _send(connection: socket.socket, message: Any, descriptors: Sequence[int] = ()) -> None:
    socket.send_fds(connection, [json.dumps(message).encode()], list(descriptors))


def _receive(connection: socket.socket) -> tuple[Any, list[int]]:
    """Return a message and descriptors; None: the other side has closed."""
    data, descriptors, _, _ = socket.recv_fds(connection, MESSAGE, 64)
    return json.loads(data) if data else None, descriptors


# What follows runs in the server and in the processes that it forks.


def main() -> None:
    """Load modules and serve; what returns from serving is a process that has a program to run."""
    control = socket.socket(fileno=int(sys.argv[1]))
    base = sys.path[1:]  # without the folder of this file
    _load(THIRD_PARTY)
    request, output = _next_program(control)
    _become_program(request, output, base)


def _load(modules: Sequence[str]) -> None:
    before = _descriptors()
    for name in modules:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is loaded stays, so no collection in a program need look at it, nor copy its pages
    _of_modules.update(_descriptors() - before)


def _load_sglang(simulated: str) -> None:
    """Load SGLang; keep what a simulated chip is asked for meanwhile, for the record of each program."""
    global _asked_while_loading
    if not simulated:
        _load(SGLANG)
        return
    with tempfile.NamedTemporaryFile("r") as record:
        os.environ |= {"SGLANG_FL_SIMULATED": simulated, "SGLANG_FL_SIMULATED_RECORD": record.name}
        _load(SGLANG)
        from sglang_fl.conformance.simulated import native

        native.record(-1)
        _asked_while_loading = record.read()


def _next_program(control: socket.socket) -> tuple[dict[str, Any], int]:
    """Serve requests; return in the process of a program what it is to run, and its output."""
    while True:
        request, descriptors = _receive(control)
        if request is None:  # the tests have ended
            os._exit(0)
        if "simulated" in request:
            if not os.fork():
                control = socket.socket(fileno=descriptors[0])
                _load_sglang(request["simulated"])
            else:
                os.close(descriptors[0])
        elif not os.fork():
            attendant = socket.socket(fileno=descriptors[0])
            program = os.fork()
            if not program:
                control.close()
                return request, descriptors[1]
            os.close(descriptors[1])
            _send(attendant, program)
            _, status = os.waitpid(program, 0)
            with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
                _send(attendant, os.waitstatus_to_exitcode(status))
            os._exit(0)
        else:
            for descriptor in descriptors:
                os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # attendants that have ended
                pass


def _become_program(request: dict[str, Any], output: int, base: list[str]) -> None:
    os.setsid()
    for standard in (1, 2):
        os.dup2(output, standard)
    # Objects for what the descriptors are now: the server's may be files, which can be sought in. Line by
    # line, because child processes write to the same pipe.
    sys.stdout = open(1, "w", 1, encoding="utf-8", closefd=False)  # noqa: SIM115 - it stays open
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    mine, twins = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        twins.close()
        _close_all_but(mine.fileno())
        _take_over(request, base)
        _spawn_by(mine)
        _run(request["command"])
    else:
        mine.close()
        _close_all_but(twins.fileno())
        request, descriptors = _next_child(twins)
        twins.close()
        _become_child(request, descriptors, base)


def _next_child(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork a child for each request; return in the child what it is to run, and its descriptors."""
    while True:
        request, descriptors = _receive(control)
        if request is None:  # the program has ended
            os._exit(0)
        between = os.fork()
        if not between:
            child = os.fork()
            if not child:
                return request, descriptors
            _send(control, child)
            os._exit(0)
        os.waitpid(between, 0)
        _send(control, "it is yours")
        for descriptor in descriptors:
            os.close(descriptor)


def _become_child(request: dict[str, Any], descriptors: list[int], base: list[str]) -> None:
    # Out of the way first: a descriptor may have come under the number that another is to have.
    high = [os.dup2(descriptor, 1000 + n) for n, descriptor in enumerate(descriptors)]
    wanted = request["descriptors"]
    _close_all_but(*high)
    for descriptor, number in zip(high, wanted, strict=True):
        os.dup2(descriptor, number, inheritable=False)
        os.close(descriptor)
    _take_over(request, base)
    _run(request["command"])


def _close_all_but(*kept: int) -> None:
    for number in _descriptors() - {0, 1, 2, *kept} - _of_modules:
        os.close(number)


def _descriptors() -> set[int]:
    """Return the open descriptors."""
    numbers = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    return {number for number in numbers if _is_open(number)}  # without that of the listing itself


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _take_over(request: dict[str, Any], base: list[str]) -> None:
    """Take environment, folder, path and title as a fresh interpreter has them."""
    import numpy
    import setproctitle

    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[:] = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *base]
    importlib.invalidate_caches()
    numpy.random.seed()  # Python's own generator seeds itself anew
    setproctitle.setproctitle(shlex.join(request["command"]))
    if os.environ.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    if "--multiprocessing-fork" in request["command"]:
        multiprocessing.current_process().name = "a child"  # as it will be called before it imports anything
    if "sglang.srt.platforms" in sys.modules:
        _ask_for_the_platform_again()


def _ask_for_the_platform_again() -> None:
    """Let this project read the program's settings, where it had read those of the server for SGLang."""
    from sglang_fl.plugin import activate_platform
    from sglang_fl.startup import configure

    before = activate_platform()
    configure.cache_clear()
    if activate_platform() != before:
        sys.exit(f"the server of forks has SGLang loaded for {before}; this program's platform is another")
    record = os.environ.get("SGLANG_FL_SIMULATED_RECORD")
    if record and _asked_while_loading:
        with Path(record).open("a") as file:
            file.write(_asked_while_loading)


def _spawn_by(twin: socket.socket) -> None:
    """Have ``multiprocessing`` ask the twin where it would execute Python for a child."""
    from multiprocessing import util

    execute, lock = util.spawnv_passfds, threading.Lock()
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def spawn(path: Any, args: list[str], passfds: Sequence[int]) -> int:
        if "--multiprocessing-fork" not in args:
            return execute(path, args, passfds)
        descriptors = sorted(passfds)
        request = {
            "command": list(map(os.fsdecode, args)),
            "environment": dict(os.environ),
            "folder": str(Path.cwd()),
            "descriptors": descriptors,
        }
        with lock:
            prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                _send(twin, request, descriptors)
            except BrokenPipeError:  # SGLang ends whatever runs below it when an engine stops, the twin too
                return execute(path, args, passfds)
            child, _ = _receive(twin)
            _receive(twin)  # from now on it is the child of this process
            prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        return child

    util.spawnv_passfds = spawn


def _run(command: list[str]) -> None:
    """Do what Python does with this command line."""
    options = command[1:]
    while options[0] not in ("-c", "-m") and options[0].startswith("-"):
        del options[0]  # flags of the interpreter, which ``multiprocessing`` repeats
    if options[0] == "-c":
        main = types.ModuleType("__main__")
        sys.modules["__main__"], sys.argv = main, ["-c", *options[2:]]
        sys.path.insert(0, "")
        exec(compile(options[1], "<string>", "exec"), vars(main))
    elif options[0] == "-m":
        sys.argv = options[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(options[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = options
        sys.path.insert(0, str(Path(options[0]).resolve().parent))
        runpy.run_path(options[0], run_name="__main__")


if __name__ == "__main__":
    main()

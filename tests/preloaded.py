"""Start Python programs from a server that has third-party modules loaded: seconds less for each process.

SGLang's engine is at least three processes, and each needs 9 to 10 s of processor time to import torch,
transformers, Triton and the like, before 3 s for SGLang and the plugin. Here the former is done once:

1. ``tests.forked.Server`` starts this file as a process. It imports ``THIRD_PARTY`` and waits for requests.
   The processes of one run of the tests share it.
2. For each program it forks, and passes on how that ends. The program takes its output, environment, folder,
   ``sys.path`` and ``sys.argv`` as a fresh interpreter would, in a session of its own.
3. Before the program runs it forks once more: its twin, which never imports anything.
4. Where ``multiprocessing`` would execute Python anew to spawn a child, the program asks its twin for a fork.
   The twin forks by way of a process in between that ends at once. The program has declared itself the reaper
   of such orphans, so the child is its own: SGLang sends signals to its parent, waits for its children, and
   ends those that it finds below itself.

A process that runs tests may have a twin too (``tests.twin.started``): it has torch loaded, and forks what
tests start by ``subprocess``.

SGLang and this project's packages are imported afresh in each process, unless the server ``has_sglang``. Then
SGLang is loaded as a scheduler has it before it loads plugins. While SGLang is imported it asks this project
for its platform, and that is all that is kept for the life of a process: a program asks again under its own
settings, and ends where the platform is another one. A variable of SGLang that differs is refused.

What differs from a real start: variables that libraries read when they are loaded must be those of the
server (another value is refused), and ``/proc/PID/cmdline`` is a title. Where the server ``has_sglang``,
SGLang looks for a function that is hooked only in the modules that had imported it by then and in those
loaded later, not in all. At its end a program does what is registered for it and is gone, without Python
taking apart what is loaded. Ctrl-C (``test_profile``, ``test_bisect``), a refused start (``test_start_up``),
a server that is too slow (``test_http_server``) and the demo are tested with processes really started.
"""

import atexit
import contextlib
import gc
import importlib
import multiprocessing
import os
import runpy
import select
import shlex
import signal
import site
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Sequence
from multiprocessing import util
from pathlib import Path
from typing import Any

from tests.twin import STANDARD, TORCH, Twin, receive, send

__all__ = ["THIRD_PARTY"]

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
_asked_while_loading = ""
_of_modules: set[int] = set()
#: Variables by which what was loaded tells itself something, such as SGLang on a platform without NCCL.
_set_while_loading: dict[str, str] = {}
#: Under which variables they were loaded.
_environment_on_loading: dict[str, str] = {}


def main() -> None:
    """Load modules and serve; what returns from serving is a process that has a program to run."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    base = sys.path[1:]
    del sys.path[0], sys.modules["tests"], sys.modules["tests.twin"]  # programs find nothing of these
    if sys.argv[2:] == ["twin"]:
        _load(TORCH)
        _be_a_twin(listener, base)
    _load(THIRD_PARTY)
    request, output = _next_program(listener)
    _become_program(request, output, base)


def _load(modules: Sequence[str]) -> None:
    before, environment = _descriptors(), dict(os.environ)
    for name in modules:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    _environment_on_loading.update(environment)
    gc.collect()
    gc.freeze()  # what is loaded stays, so no collection in a program need look at it, nor copy its pages
    _of_modules.update(_descriptors() - before)
    _set_while_loading.update({k: v for k, v in os.environ.items() if environment.get(k) != v})


def _load_sglang(simulated: str) -> None:
    """Load SGLang; keep what a simulated chip is asked for meanwhile, for the record of each program."""
    global _asked_while_loading
    if not simulated:
        _load(SGLANG)
        _know_importers()
        return
    with tempfile.NamedTemporaryFile("r") as record:
        os.environ |= {"SGLANG_FL_SIMULATED": simulated, "SGLANG_FL_SIMULATED_RECORD": record.name}
        _load(SGLANG)
        from sglang_fl.conformance.simulated import native

        native.record(-1)
        _asked_while_loading = record.read()
    _know_importers()


def _know_importers() -> None:
    """Have SGLang look for a hooked function only where it was imported, and in what is loaded later.

    SGLang looks through all names of all modules for each hook, a third of a million, which takes 0.05 s;
    and a fork copies each page with an object that is looked at.
    """
    from sglang.srt.plugins import hook_registry

    gc.unfreeze()  # what is frozen is not listed
    known = {id(each): each for each in gc.get_objects() if isinstance(each, types.FunctionType)}
    importers: dict[int, dict[str, types.ModuleType]] = {}
    gc.freeze()
    before = dict(sys.modules)
    for name, module in before.items():
        for value in list(getattr(module, "__dict__", {}).values()):
            if id(value) in known:
                importers.setdefault(id(value), {})[name] = module
    look_through = hook_registry._propagate_patch

    def propagate(original: Any, wrapped: Any, source: Any) -> int:
        modules: dict[str, Any] = sys.modules
        if id(original) in known:
            later = {name: module for name, module in modules.items() if before.get(name) is not module}
            modules = importers.get(id(original), {}) | later
        hook_registry.sys = types.SimpleNamespace(modules=modules)
        return look_through(original, wrapped, source)

    hook_registry._propagate_patch = propagate


def _next_program(listener: socket.socket) -> tuple[dict[str, Any], int]:
    """Serve requests; return in the process of a program what it is to run, and its output."""
    controls: list[socket.socket] = []
    programs: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for ready in select.select([listener, *controls, *programs], [], [])[0]:
            if ready is listener:
                controls.append(listener.accept()[0])
                continue
            if ready in programs:
                _tell_how_it_ended(ready, *programs.pop(ready))
                continue
            request, descriptors = receive(ready)
            if request is None:
                _take_leave(ready, controls)
            elif process := os.fork():
                _know(process, descriptors, programs)
            else:
                _close(listener, *controls, *(asking for _, asking in programs.values()))
                for descriptor in programs:
                    os.close(descriptor)
                if "simulated" not in request:
                    return request, descriptors[1]
                listener, controls, programs = socket.socket(fileno=descriptors[0]), [], {}
                _load_sglang(request["simulated"])
                break


def _know(process: int, descriptors: list[int], programs: dict[int, tuple[int, socket.socket]]) -> None:
    """Tell who asked for a program which process it is, and note who that was."""
    asking, *output = descriptors
    for descriptor in output:
        os.close(descriptor)
    if not output:  # it is a server with SGLang, and this was its listener
        os.close(asking)
        return
    connection = socket.socket(fileno=asking)
    send(connection, process)
    programs[os.pidfd_open(process)] = (process, connection)


def _tell_how_it_ended(descriptor: int, process: int, asking: socket.socket) -> None:
    os.close(descriptor)
    _, status = os.waitpid(process, 0)
    with asking, contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
        send(asking, os.waitstatus_to_exitcode(status))


def _take_leave(control: socket.socket, controls: list[socket.socket]) -> None:
    """Forget one of the processes that use this server; end after the last."""
    controls.remove(control)
    control.close()
    if not controls:
        os._exit(0)


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        each.close()


def _become_program(request: dict[str, Any], output: int, base: list[str]) -> None:
    os.setsid()
    for standard in (1, 2):
        os.dup2(output, standard)
    _open_streams(buffering=1)  # because child processes write to the same pipe
    mine, twins = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        twins.close()
        _close_all_but(mine.fileno())
        _take_over(request, base)
        util.spawnv_passfds = Twin(mine, _environment_on_loading).spawn
        _run_to_the_end(request["command"])
    else:
        mine.close()
        _close_all_but(twins.fileno())
        _be_a_twin(twins, base)


def _open_streams(buffering: int) -> None:
    """Make objects for what the descriptors are now: the server's may be files, which can be sought in."""
    text = {"encoding": sys.stdout.encoding, "errors": sys.stdout.errors, "closefd": False}
    sys.stdin = open(0, **text)  # noqa: SIM115 - they stay open
    sys.stdout = open(1, "w", buffering, **text)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, **{**text, "errors": "backslashreplace"})  # noqa: SIM115


def _be_a_twin(control: socket.socket, base: list[str]) -> None:
    """Fork children until the process that asks for them has ended."""
    request, descriptors = _next_child(control)
    control.close()
    _become_child(request, descriptors, base)


def _next_child(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork a child for each request; return in the child what it is to run, and its descriptors."""
    while True:
        request, descriptors = receive(control)
        if request is None:  # the program has ended
            os._exit(0)
        between = os.fork()
        if not between:
            child = os.fork()
            if not child:
                return request, descriptors
            send(control, child)
            os._exit(0)
        os.waitpid(between, 0)
        send(control, "it is yours")
        for descriptor in descriptors:
            os.close(descriptor)


def _become_child(request: dict[str, Any], descriptors: list[int], base: list[str]) -> None:
    # Out of the way first: a descriptor may have come under the number that another is to have.
    high = [os.dup2(descriptor, 1000 + n) for n, descriptor in enumerate(descriptors)]
    wanted = request["descriptors"]
    _close_all_but(*high)
    for descriptor, number in zip(high, wanted, strict=True):
        os.dup2(descriptor, number, inheritable=number in STANDARD)
        os.close(descriptor)
    if request["is_subprocess"]:
        _become_subprocess(request, base)
    _take_over(request, base)
    _run_to_the_end(request["command"])


def _become_subprocess(request: dict[str, Any], base: list[str]) -> None:
    """Fork a twin, and take streams of its own; what this process starts is forked as well."""
    if request["has_own_session"]:
        os.setsid()
    mine, twins = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not os.fork():
        for standard in STANDARD:  # who reads a pipe is told when this process has ended, not its twin
            os.dup2(os.open(os.devnull, os.O_RDWR), standard)
        _close_all_but(twins.fileno())
        _be_a_twin(twins, base)
    twins.close()
    _open_streams(buffering=-1)
    twin = Twin(mine, _environment_on_loading)
    util.spawnv_passfds, subprocess._fork_exec = twin.spawn, twin.fork_exec  # type: ignore[attr-defined]


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
    os.environ.update(_set_while_loading | request["environment"])
    os.chdir(request["folder"])
    sys.path[:] = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *base]
    importlib.invalidate_caches()
    sys.orig_argv[:] = request["command"]
    sys.modules.pop("sitecustomize", None)
    site.execsitecustomize()
    numpy.random.seed()  # Python's own generator seeds itself anew
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have the tests ignore it
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


def _run_to_the_end(command: list[str]) -> None:
    """Run a program and end as Python does, but for taking apart what is loaded: that takes a second."""
    code: Any = 0
    try:
        _run(command)
    except SystemExit as ended:
        code = ended.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:  # noqa: BLE001 - whatever it is, Python prints it
        sys.stdout.flush()
        sys.excepthook(type(error), error, error.__traceback__)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


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

"""tp > 1 hangs at start-up: SGLang compiles its all-reduce at a machine's first start, without a word.

Seen on two H200 (SGLang 0.5.23): after a minute and a half all ranks waited in ``CustomAllReduceV2``, one for
ninja and the others for its lock, before any weight was loaded.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from sglang_fl.diagnostics.doctor.configured import configured
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem
from sglang_fl.diagnostics.doctor.foreign import variable
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.sglang_adapter.seams import sglang_folder

__all__ = ["collective_kernels"]

_WHAT = "kernels of the all-reduce"
#: The first module that SGLang compiles for it (0.5.23, ``kernels/ops/communication/all_reduce.py``).
_MODULE = "cuda_ipc"


def collective_kernels(launch: Launch) -> Iterator[Finding]:
    """Is what SGLang runs between GPUs compiled, or can it be?"""
    configuration = configured()
    if configuration is None or configuration.registry.vendor.device_type != "cuda":
        return
    if launch.local_ranks < 2 or not _are_compiled_at_the_start():
        return
    folder = Path(variable("SGLANG_JIT_CACHE_DIR") or "~/.cache/sglang/jit").expanduser()
    compiler = _compiler()
    if any(folder.glob(f"*/{_MODULE}/**/*.so")):
        yield ok(_WHAT, f"compiled before, in {folder}")
    elif compiler.exists():
        text = f"not compiled yet: the first start compiles them by {compiler} for minutes, without a word"
        yield ok(_WHAT, text, f"wait for it once, and keep {folder}")
    else:
        text = f"not compiled yet, and there is no {compiler} to do it"
        remedy = "install CUDA's compiler or name it in CUDA_HOME; --disable-custom-all-reduce does without"
        yield problem(_WHAT, text, remedy)


def _are_compiled_at_the_start() -> bool:
    """Whether the installed SGLang brings them as source; older ones come with ``sgl_kernel``."""
    sglang = sglang_folder()
    return sglang is not None and (sglang / "kernels/ops/communication/all_reduce.py").exists()


def _compiler() -> Path:
    """Return the compiler that SGLang looks for, in its order."""
    home = variable("CUDA_HOME") or variable("CUDA_PATH")
    found = None if home else shutil.which("nvcc")
    return Path(found) if found else Path(home or "/usr/local/cuda", "bin", "nvcc")

"""Launch a Triton kernel without paying for Triton's own bookkeeping at each call.

``kernel[grid](...)`` binds, specialises and hashes its arguments at every call, which costs more host time
than all the rest of an op (12 µs; H200 host, Triton 3.6). Here a kernel is compiled once for each set of
constants and then launched directly, through the call that Triton itself makes last (4.7 µs).

All tiles of a kernel, for few rows and for many, are compiled when the first is needed, while the model is
loaded, so that a longer prompt compiles nothing later.

On Hopper and later the kernels overlap with their neighbours in the stream (programmatic dependent launch):
a kernel is brought onto the chip while its predecessor runs, and waits there before it touches anything that
the predecessor may have written. Weights alone are loaded before that wait, because nothing on the way of a
forward pass writes them; in one kernel of ``fused_moe`` also what was read by its predecessor already.

That last call of Triton's is no public interface. Where a release is not one of those that it was tried with,
or its launcher takes other arguments, kernels are launched in the public way, and one warning says so.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.runtime.errors import OutOfResources

from sglang_fl.errors import UnsupportedError

__all__ = [
    "DTYPES",
    "Launch",
    "address",
    "address_in",
    "capability",
    "compiled",
    "constants_of",
    "multiprocessors",
    "overlap",
    "precision_of",
    "shared_memory",
]

logger = logging.getLogger(__name__)

#: What the kernels here take; all of them compute in float32.
DTYPES = (torch.float16, torch.bfloat16, torch.float32)

#: ``launch(programs, *arguments)``: run so many programs on these addresses and numbers.
Launch = Callable[..., None]

_IS_INTERPRETED: bool = triton.knobs.runtime.interpret
#: The oldest and the newest release of Triton whose last call was tried, and how its arguments begin.
_TRIED = (3, 6), (3, 8)
_LAST_CALL = ("self", "gridX", "gridY", "gridZ", "stream", "function")
#: The compute capability from which on a kernel can overlap with the one before.
_OVERLAP_SINCE = (9, 0)
#: PyTorch without CUDA has none; there only Triton's interpreter runs.
_stream_of: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)


@triton.jit
def overlap(OVERLAP: tl.constexpr) -> None:
    """Wait until the kernel before is done, then let the next one come onto the chip.

    Called once, by every program, after it has loaded weights and before all else. The next kernel comes when
    all programs of this one have begun, so it takes no place from them. Not before the wait: what the next
    one loads ahead of its own wait could then still be being written two kernels back. At the end, as other
    kernels do it, is too late for short ones: µs of ``silu_and_mul`` at 16 x 14336 after another (bfloat16,
    H200) 1.37, here 1.01.
    """
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()


def why_not_directly(version: str, launcher: Any) -> str | None:
    """Say why kernels are not launched by Triton's last call, or return None.

    Parameters
    ----------
    version : Triton's
    launcher : the class of what makes that call; its ``__call__`` is looked at
    """
    oldest, newest = _TRIED
    release = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if not oldest <= release <= newest:
        tried = " to ".join(".".join(map(str, end)) for end in _TRIED)
        return f"Triton {version} is not one of the releases that it was tried with, {tried}"
    parameters = tuple(inspect.signature(launcher.__call__).parameters)
    if parameters[: len(_LAST_CALL)] != _LAST_CALL:
        return f"the launcher of Triton {version} takes {', '.join(parameters)}"
    return None


def _why_not_directly() -> str | None:
    if _IS_INTERPRETED:
        return "Triton interprets"
    try:
        from triton.backends.nvidia.driver import CudaLauncher
    except ImportError as error:
        return f"Triton {triton.__version__} has no launcher for NVIDIA: {error}"
    return why_not_directly(triton.__version__, CudaLauncher)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


#: Asked once, when the first kernel is imported.
_IN_PUBLIC = _why_not_directly()

#: What a launch takes for a tensor: its address, because reading that from a tensor costs 0.4 µs in the
#: launch and 0.08 µs here. The public way, and Triton's interpreter, take the tensor.
address: Callable[[Tensor], Any] = _itself if _IN_PUBLIC else Tensor.data_ptr


def address_in(space: Tensor, offset: int, dtype: torch.dtype) -> Any:
    """Return what a launch takes for a part of a workspace.

    Parameters
    ----------
    space : of bytes
    offset : where the part begins, in bytes, a multiple of 16
    dtype : of its elements
    """
    return space[offset:].view(dtype) if _IN_PUBLIC else space.data_ptr() + offset


@functools.cache
def capability(device: int) -> tuple[int, int]:
    """Return the compute capability of a GPU; of Triton's interpreter that of Hopper."""
    return (9, 0) if _IS_INTERPRETED else torch.cuda.get_device_capability(device)


def multiprocessors(device: int) -> int:
    """Return how many multiprocessors a GPU has; one for Triton's interpreter."""
    return 1 if _IS_INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def shared_memory(device: int) -> int:
    """Return how much memory a program may share on a GPU, in bytes; in Triton's interpreter as on Hopper."""
    if _IS_INTERPRETED:
        return 232448
    return int(triton.runtime.driver.active.utils.get_device_properties(device)["max_shared_mem"])


def _unaligned(value: Any) -> Any:
    """Return for a tensor one of its dtype that does not begin at a multiple of 16 bytes."""
    return value.new_empty(2)[1:] if isinstance(value, Tensor) else value


def precision_of(dtype: torch.dtype) -> str:
    """Return how ``tl.dot`` is to take elements: float32 as they are, which Triton would round to TF32."""
    return "ieee" if dtype is torch.float32 else "tf32"


def constants_of(kernel: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the known constants that a kernel has, in the order of its signature."""
    return {name: known[name] for name in kernel.arg_names if name in known}


def compiled(
    kernel: Any,
    *arguments: Any,
    is_aligned: bool,
    num_warps: int,
    num_stages: int | None = None,
    **constants: Any,
) -> Launch:
    """Compile a kernel for such arguments and constants, and return how to launch it.

    Parameters
    ----------
    kernel : a function under ``triton.jit`` whose last constant is ``OVERLAP`` and whose numbers are
        ``do_not_specialize``
    arguments : of the kernel before its constants: tensors of the dtypes that it will be launched with,
        and numbers
    is_aligned : all tensors that it will be launched with begin at a multiple of 16 bytes
    num_warps : of each program
    num_stages : of the pipelines of its loops; None: Triton's own number
    constants : its ``tl.constexpr`` parameters but ``OVERLAP``, in the order of its signature

    Returns
    -------
    Launch : for one axis of programs, on the current stream of the arguments' device, which must be the
        current device, as it is for any launch of Triton's

    Raises
    ------
    UnsupportedError : the tensors are on no GPU, or not all on one; a program needs more shared memory than
        the GPU has
    """
    device = _device_of(arguments)
    if _IS_INTERPRETED:
        return lambda programs, *given: kernel[(programs,)](*given, **constants, OVERLAP=False)
    if device < 0:
        raise UnsupportedError("it runs on a GPU, and these tensors are on the CPU")
    constants["OVERLAP"] = capability(device) >= _OVERLAP_SINCE
    options: dict[str, Any] = {"num_warps": num_warps, "launch_pdl": constants["OVERLAP"]}
    if num_stages is not None:
        options["num_stages"] = num_stages
    if _IN_PUBLIC:
        _say_once(_IN_PUBLIC)
        return lambda programs, *given: kernel[(programs,)](*given, **constants, **options)
    like = arguments if is_aligned else tuple(map(_unaligned, arguments))
    with torch.cuda.device(device):
        binary = kernel.warmup(*like, grid=(1,), **options, **constants)
        try:
            run = binary.run  # loads the binary onto the device
        except OutOfResources as error:
            raise UnsupportedError(f"this GPU has too little for a program of it: {error}") from error
    metadata, fixed = binary.packed_metadata, tuple(constants.values())
    stream_of = _stream_of

    def launch(programs: int, *given: Any) -> None:
        # No launch metadata and no hooks: those are for profilers that ask for Triton's names. The binary is
        # asked for its function each time, so that this keeps it: Triton unloads a binary that nobody has.
        run(programs, 1, 1, stream_of(device), binary.function, metadata, None, None, None, *given, *fixed)

    return launch


def _device_of(arguments: tuple[Any, ...]) -> int:
    """Return the number of the device that all tensors are on, -1 for the CPU.

    Raises
    ------
    UnsupportedError : they are on several
    """
    devices = {argument.device for argument in arguments if isinstance(argument, Tensor)}
    if len(devices) > 1:
        where = " and ".join(sorted(map(str, devices)))
        raise UnsupportedError(f"its tensors are on {where}, not on one device")
    return next(argument.get_device() for argument in arguments if isinstance(argument, Tensor))


@functools.cache
def _say_once(reason: str) -> None:
    logger.warning("kernels are launched in Triton's public way, which costs about 7 µs a call: %s", reason)

"""What went wrong, as text, and what has been said of it.

An exception object holds its traceback, that the frames, and those the tensors of the call. So what is kept
for a log or for the next layer is text.
"""

import re
import traceback
from dataclasses import dataclass, field

import torch

__all__ = ["Fault", "is_first", "is_out_of_memory"]

#: What allocators, drivers and libraries of the devices raise as a plain ``RuntimeError``: PyTorch of CUDA,
#: HIP, XPU, NPU and MLU, the CUDA driver by way of Triton, cuBLAS and its like, CANN, the CPU's allocator.
#: Shared memory that does not suffice is another thing: Triton calls it "out of resource".
_OUT_OF_MEMORY = re.compile(
    r"out of memory|_ALLOC_FAILED|Memory_Allocation_Failure"
    r"|DefaultCPUAllocator: (not enough|can't allocate) memory",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Fault:
    """An exception without the objects that it passed through.

    Parameters
    ----------
    kind : the exception's class
    text : its message
    where : its traceback, formatted
    """

    kind: str
    text: str
    where: str = field(repr=False, compare=False)

    @classmethod
    def of(cls, error: Exception) -> "Fault":
        """Take down an exception."""
        return cls(type(error).__name__, str(error), "".join(traceback.format_exception(error)))

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, which is no fault of the kernel that asked for it last."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


_said: set[tuple[str, ...]] = set()


def is_first(*saying: str) -> bool:
    """Whether this has not been said in this process: every layer of a model would say it again."""
    if saying in _said:
        return False
    _said.add(saying)
    return True

"""Where a kernel writes, and whose memory it returns."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from sglang_fl.ops import Op
from sglang_fl.ops.op import Arguments

__all__ = ["Snapshot", "alias_faults"]

#: Memory beyond that is not copied; only the edge cases with far rows have so much.
LARGEST_COPY = 2**28


class Snapshot:
    """A copy of all memory that the arguments of a call lie in, with what is between their rows.

    Parameters
    ----------
    op : the op that is going to be called
    given : its arguments
    """

    def __init__(self, op: Op, given: Arguments) -> None:
        self._op = op
        self._given = given
        self._tensors = {name: v for name, v in given.items() if isinstance(v, Tensor) and v.numel()}
        self._before = {
            _storage(tensor): _bytes(tensor)
            for tensor in self._tensors.values()
            if tensor.untyped_storage().nbytes() <= LARGEST_COPY
        }

    def faults(self, may_write: tuple[str, ...]) -> Iterator[str]:
        """Say what was written although it is not among ``may_write``, in the order of the names."""
        for storage, before in self._before.items():
            inside = {n: t for n, t in sorted(self._tensors.items()) if _storage(t) == storage}
            first = next(iter(inside.values()))
            changed = (_bytes(first) != before).view(-1, first.element_size()).any(-1)
            for name, tensor in inside.items():
                if name in may_write:
                    _view(changed, tensor)[self._writable(name)] = False
            yield from _blame(changed, inside)

    def _writable(self, name: str) -> Tensor | slice:
        rows = self._op.written_rows(name, self._given)
        return slice(None) if rows is None else rows.cpu()


def _blame(changed: Tensor, inside: Mapping[str, Tensor]) -> Iterator[str]:
    """Say which arguments were changed, and whether memory beside them was."""
    for name, tensor in inside.items():
        view = _view(changed, tensor)
        if view.any():
            yield f"{name} was written"
        view[...] = False
    if changed.any():
        yield f"memory beside {' and '.join(inside)} was written"


def alias_faults(outputs: tuple[Tensor, ...], given: Arguments, may_write: tuple[str, ...]) -> Iterator[str]:
    """Say which results lie in memory that is not theirs.

    A result may be an argument that the kernel may write, and nothing else that exists; nor may two results,
    or two elements of one, be the same memory: whoever gets them writes them in place.
    """
    for index, output in enumerate(outputs):
        if any(stride == 0 < size - 1 for stride, size in zip(output.stride(), output.shape, strict=True)):
            yield f"elements of result {index} share memory"
        for name, argument in given.items():
            if isinstance(argument, Tensor) and name not in may_write and _overlap(output, argument):
                yield f"result {index} lies in the memory of {name}, which is the caller's"
        for other in range(index):
            if _overlap(output, outputs[other]):
                yield f"results {other} and {index} share memory"


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have an element in common."""
    if not one.numel() or not other.numel() or _storage(one) != _storage(other):
        return False
    if one.element_size() != other.element_size():
        return True
    if one.untyped_storage().nbytes() > LARGEST_COPY:
        return one.data_ptr() == other.data_ptr()
    marks = torch.zeros(one.untyped_storage().nbytes() // one.element_size(), dtype=torch.bool)
    _view(marks, one)[...] = True
    return bool(_view(marks, other).any())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _view(marks: Tensor, tensor: Tensor) -> Tensor:
    """Return the marks of a tensor's elements, from those of its whole storage; one for an expanded axis."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    shape = [size if stride else min(size, 1) for size, stride in pairs]
    return marks.as_strided(shape, tensor.stride(), tensor.storage_offset())


def _bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor's whole storage, on the CPU and as they are now."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return tensor.detach().as_strided((count,), (1,), 0).to("cpu", copy=True).view(torch.uint8)

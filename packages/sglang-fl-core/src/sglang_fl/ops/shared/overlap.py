"""Whether a kernel may write an argument in place: whether the memory that it lies in is its own."""

from collections.abc import Sequence

from torch import Tensor

__all__ = ["shares_memory", "unshared"]


def shares_memory(tensor: Tensor, *others: object) -> bool:
    """Whether two elements of a tensor, or one of it and one of another argument, may be the same memory.

    Rows that were expanded share memory, and so do windows that slide by less than their width, a residual
    that is the very tensor it is added to, and a weight that is a row of what it scales. The slices of a
    packed projection do not: their rows take turns.

    Parameters
    ----------
    tensor : what a kernel would write
    others : the other arguments of the call; what is no tensor shares nothing

    Returns
    -------
    bool : False is certain; True may be wrong for strides that fit no pattern of rows
    """
    if _overlaps_itself(tensor):
        return True
    return any(isinstance(other, Tensor) and _overlap(tensor, other) for other in others)


def unshared(tensor: Tensor, *others: object) -> Tensor:
    """Return a tensor that may be written: the given one where its memory is its own, else a dense copy.

    Parameters
    ----------
    tensor, others : see ``shares_memory``
    """
    return tensor.clone() if shares_memory(tensor, *others) else tensor


def _axes(tensor: Tensor) -> list[tuple[int, int]]:
    """Return stride in bytes and size of each axis that leads anywhere, the shortest stride first."""
    item = tensor.element_size()
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return sorted((stride * item, size) for stride, size in pairs if size > 1)


def _extent(axes: Sequence[tuple[int, int]], item: int) -> int:
    """Return the bytes from the first element to the end of the last one."""
    return item + sum((size - 1) * stride for stride, size in axes)


def _reach(tensor: Tensor) -> int:
    """Return the bytes from a tensor's first element to the end of its last one."""
    if tensor.is_contiguous():
        return tensor.numel() * tensor.element_size()
    return _extent(_axes(tensor), tensor.element_size())


def _overlaps_itself(tensor: Tensor) -> bool:
    if tensor.is_contiguous() or not tensor.numel():
        return False
    axes, item = _axes(tensor), tensor.element_size()
    return any(stride < _extent(axes[:index], item) for index, (stride, _) in enumerate(axes))


def _overlap(one: Tensor, other: Tensor) -> bool:
    if not one.numel() or not other.numel() or one.device != other.device:
        return False
    distance = other.data_ptr() - one.data_ptr()
    if distance >= _reach(one) or -distance >= _reach(other):
        return False
    axes, other_axes = _axes(one), _axes(other)
    # They lie within each other's reach: only rows at one stride that take turns are apart.
    if not axes or not other_axes or axes[-1][0] != other_axes[-1][0]:
        return True
    stride = axes[-1][0]
    width, other_width = (
        _extent(axes[:-1], one.element_size()),
        _extent(other_axes[:-1], other.element_size()),
    )
    gap = distance % stride
    return gap < width or gap + other_width > stride

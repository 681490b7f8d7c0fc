"""FlagGems' ATen kernels that differ from PyTorch's on an NVIDIA GPU, each with a reproduction.

Found by ``python -m benchmarks.bench_aten``. A reproduction returns as long as the fault is there; a test
runs it on a GPU.
"""

from collections.abc import Callable
from typing import Any

from sglang_fl.vendor import AtenQuarantined, flag_gems_aten_kernel

__all__ = [
    "QUARANTINE",
    "elements_between_are_filled",
    "empty_tensors_raise",
    "far_rows_are_read_elsewhere",
    "far_rows_are_written_elsewhere",
    "far_rows_of_a_table_are_read_elsewhere",
    "integers_are_compared_in_float32",
    "numbers_that_are_none_are_lost",
    "strided_factors_are_misread",
]


def _entry(names: tuple[str, ...], reason: str, reproduction: Callable[[], None]) -> AtenQuarantined:
    target = f"{__name__}:{reproduction.__name__}"
    return AtenQuarantined(names, reason, "flag-gems", ">=5.0.2,<6", target)


def integers_are_compared_in_float32() -> None:
    """Compare integers that are one float32.

    Raises
    ------
    AssertionError : they are told apart
    """
    import torch

    x = torch.tensor([1 << 24], device="cuda")
    if bool(flag_gems_aten_kernel("lt.Tensor")(x, x + 1)):
        raise AssertionError("2**24 is less than 2**24 + 1")


def elements_between_are_filled() -> None:
    """Fill every second element.

    Raises
    ------
    AssertionError : these, and no others, are filled
    """
    import torch

    x = torch.zeros(128, dtype=torch.int64, device="cuda")
    flag_gems_aten_kernel("fill_.Scalar")(x[::2], 1)
    if x.tolist() == [1, 0] * 64:
        raise AssertionError("every second element is filled")


def strided_factors_are_misread() -> None:
    """Multiply every second element of two tensors.

    Raises
    ------
    AssertionError : the products are right
    """
    import torch

    x = torch.arange(1.0, 8193.0, device="cuda").view(2, 4096)[:, ::2]
    if torch.equal(flag_gems_aten_kernel("mul.Tensor")(x, x), x * x):
        raise AssertionError("the products are right")


def empty_tensors_raise() -> None:
    """Reduce a tensor of no elements.

    Raises
    ------
    AssertionError : that can be done
    """
    import torch

    try:
        flag_gems_aten_kernel("any")(torch.zeros(0, device="cuda"))
    except ZeroDivisionError:
        return
    raise AssertionError("no element is true")


def numbers_that_are_none_are_lost() -> None:
    """Cut off a NaN at zero.

    Raises
    ------
    AssertionError : it stays one
    """
    import torch

    if bool(flag_gems_aten_kernel("relu")(torch.tensor([torch.nan], device="cuda")).isnan()):
        raise AssertionError("a NaN stays one")


#: Rows of so many elements, and the number of the one that begins at element 2**31.
_WIDTH, _FAR_ROW = 1 << 15, 1 << 16


def _far_rows() -> tuple[Any, Any]:
    """Return rows, with ones in the last one alone, and its number in int32.

    Where 32 bits point to instead lies memory of the same allocation, so that a wrong address harms nothing.
    """
    import torch

    memory = torch.zeros(2 * _FAR_ROW + 1, _WIDTH, dtype=torch.float16, device="cuda")
    memory[-1] = 1
    return memory[_FAR_ROW:], torch.tensor([_FAR_ROW], dtype=torch.int32, device="cuda")


def far_rows_are_read_elsewhere() -> None:
    """Read a row beyond element 2**31 by its number in int32.

    Raises
    ------
    AssertionError : it is that row
    """
    rows, last = _far_rows()
    if bool((flag_gems_aten_kernel("index.Tensor")(rows, [last]) == 1).all()):
        raise AssertionError("the far row is read")


def far_rows_are_written_elsewhere() -> None:
    """Write a row beyond element 2**31 by its number in int32.

    Raises
    ------
    AssertionError : it is that row
    """
    rows, last = _far_rows()
    flag_gems_aten_kernel("index_put_")(rows, [last], rows[:1] + 2)
    if bool((rows[-1] == 2).all()):
        raise AssertionError("the far row is written")


def far_rows_of_a_table_are_read_elsewhere() -> None:
    """Look up a row beyond element 2**31 by its number in int32.

    Raises
    ------
    AssertionError : it is that row
    """
    rows, last = _far_rows()
    if bool((flag_gems_aten_kernel("embedding")(rows, last) == 1).all()):
        raise AssertionError("the far row is looked up")


_COMPARISONS = tuple(
    f"{name}.{kind}" for name in ("eq", "ge", "gt", "le", "lt", "ne") for kind in ("Scalar", "Tensor")
)

QUARANTINE = (
    _entry(
        (*_COMPARISONS, "clamp.default"),
        "compares integers as float32, which cannot tell them apart from 2**24 on",
        integers_are_compared_in_float32,
    ),
    _entry(
        ("fill_.Scalar", "zero_.default"),
        "fills what lies between the elements of a strided tensor",
        elements_between_are_filled,
    ),
    _entry(("mul.Tensor",), "misreads strided tensors", strided_factors_are_misread),
    _entry(
        (
            *("_log_softmax.default", "all.default", "any.default", "cumsum.default", "mean.dim"),
            *("sum.default", "tril.default"),
        ),
        "raises ZeroDivisionError where there are no elements",
        empty_tensors_raise,
    ),
    _entry(
        ("index.Tensor",),
        "counts elements in the index's own dtype: by int32 it reads other memory from element 2**31 on",
        far_rows_are_read_elsewhere,
    ),
    _entry(
        ("index_put_.default",),
        "counts elements in the index's own dtype: by int32 it writes other memory from element 2**31 on",
        far_rows_are_written_elsewhere,
    ),
    _entry(
        ("embedding.default",),
        "counts elements in the index's own dtype: by int32 it reads other memory from element 2**31 on",
        far_rows_of_a_table_are_read_elsewhere,
    ),
    _entry(("amax.default", "argmax.default", "relu.default"), "loses NaN", numbers_that_are_none_are_lost),
)

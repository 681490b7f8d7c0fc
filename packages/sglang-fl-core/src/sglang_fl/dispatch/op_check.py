"""Hold calls of a kernel against its op's reference while a model runs."""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from sglang_fl.ops import Kernel, Op
from sglang_fl.ops.compare import error_in_units

T = TypeVar("T")

__all__ = ["MARGIN", "OpCheck", "Violation", "violations"]

logger = logging.getLogger(__name__)

#: How much further from float64 than its contract's bound a result must be to count as wrong: the bound is
#: for the inputs of the contract's cases; a model's may make a sum cancel a little more.
MARGIN = 4.0


@dataclass(frozen=True)
class Violation:
    """One call whose results are not what the op's contract says.

    Parameters
    ----------
    op, layer : the op's name, and the layer's name in the model
    what : half a sentence
    error : in units of the dtype's rounding, from float64; inf where a result is not finite
    reference_error : the same for the reference in the serving dtype
    allowed : the error from which on it is a violation
    dtype, shapes : of the tensor arguments by name
    call : the arguments before the call, for a reproduction
    """

    op: str
    layer: str
    what: str
    error: float
    reference_error: float
    allowed: float
    dtype: str
    shapes: Mapping[str, tuple[int, ...]]
    call: Mapping[str, Any] = field(repr=False, compare=False)

    def __str__(self) -> str:
        return (
            f"{self.op} in {self.layer}: {self.what}: {self.error:.3g} units of {self.dtype} from float64 "
            f"(plain PyTorch {self.reference_error:.3g}, allowed {self.allowed:.3g})"
        )


@dataclass
class OpCheck:
    """Wraps kernels so that some of their calls are checked.

    Parameters
    ----------
    report : told of each violation, after the call; the kernel's results are served all the same
    every : one call in so many of each layer is checked
    is_on : whether calls are checked now
    skip : asked before a check: True leaves the call alone (a graph is being captured)
    look : ``look(op, layer, arguments, results)``, told of each checked call
    unchecked : filled with the ops whose calls could not be checked, and why: no memory, no float64
    """

    report: Callable[[Violation], None]
    every: int = 1
    is_on: bool = True
    skip: Callable[[], bool] = lambda: False
    look: Callable[[Op, str, Mapping[str, Any], Any], None] | None = None
    unchecked: dict[str, str] = field(default_factory=dict)

    def checking(self, op: Op, layer: Callable[[], str], kernel: Kernel) -> Kernel:
        """Return the kernel with the check around it; its signature stays the same.

        Parameters
        ----------
        op : the op
        layer : the layer's name in the model, asked when there is something to report
        kernel : the implementation's function
        """
        calls = 0

        @functools.wraps(kernel)
        def checked(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if not self.is_on or (calls - 1) % self.every or self.skip():
                return kernel(*args, **kwargs)
            before = self._try(op, lambda: _kept(op.signature.bind(*args, **kwargs).arguments))
            results = kernel(*args, **kwargs)
            if before is not None:
                after = op.signature.bind(*args, **kwargs).arguments
                self._try(op, lambda: self._examine(op, layer(), before, results, after))
            return results

        checked.__signature__ = inspect.signature(kernel)  # type: ignore[attr-defined]
        return checked

    def _examine(
        self, op: Op, layer: str, before: dict[str, Any], results: Any, after: Mapping[str, Any]
    ) -> None:
        if self.look is not None:
            self.look(op, layer, before, results)
        for violation in violations(op, layer, before, results, after):
            self.report(violation)

    def _try(self, op: Op, step: Callable[[], T]) -> T | None:
        """Do a step of a check; whatever it raises must not reach the model."""
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - it is told of, once for each op
            if op.name not in self.unchecked:
                self.unchecked[op.name] = f"{type(error).__name__}: {error}"
                logger.warning("calls of %s cannot be checked: %s", op, self.unchecked[op.name])
            return None


def _kept(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in arguments.items()}


def violations(
    op: Op, layer: str, before: Mapping[str, Any], results: Any, after: Mapping[str, Any]
) -> list[Violation]:
    """Compare the results of one call with the reference, and what it wrote with the contract.

    Parameters
    ----------
    op, layer : see ``Violation``
    before : copies of the arguments, made before the call
    results : what the kernel returned
    after : the arguments themselves, after the call
    """
    tensors = {name: value for name, value in before.items() if isinstance(value, Tensor)}
    say = functools.partial(
        Violation,
        op.name,
        layer,
        dtype=str(next(t.dtype for t in tensors.values() if t.is_floating_point())).removeprefix("torch."),
        shapes={name: tuple(value.shape) for name, value in tensors.items()},
        call=before,
    )
    found = [
        say(
            what=f"it wrote {name}, which the contract does not allow",
            error=torch.inf,
            reference_error=0.0,
            allowed=0.0,
        )
        for name in tensors
        if name not in op.may_write(before) and not _is_same(before[name], after[name])
    ]
    exact = {name: _as_float64(value) for name, value in before.items()}
    plain = _kept(before)
    truth, own = op.reference(**exact), op.reference(**plain)
    sets = (op.results(results, dict(after)), op.results(truth, exact), op.results(own, plain))
    if op.as_good is not None and op.as_good(sets[0], sets[1], before):
        return found
    sizes = op.magnitude(op.results(truth, exact), **exact) if op.magnitude else sets[1]
    sizes = (sizes,) if isinstance(sizes, Tensor) else sizes
    for index, (got, true, mine, size) in enumerate(zip(*sets, sizes, strict=True)):
        found += _of_result(op, say, index, got, true, mine, size)
    return found


def _of_result(
    op: Op, say: Callable[..., Violation], index: int, got: Tensor, true: Tensor, own: Tensor, size: Tensor
) -> list[Violation]:
    what = f"result {index}"
    if got.shape != true.shape:
        shapes = f"{what} is {tuple(got.shape)}, not {tuple(true.shape)}"
        return [say(what=shapes, error=torch.inf, reference_error=0.0, allowed=0.0)]
    if not got.is_floating_point():
        if torch.equal(got, own.to(got.dtype)):
            return []
        return [say(what=f"{what} differs", error=torch.inf, reference_error=0.0, allowed=0.0)]
    error, own_error = error_in_units(got, true, size), error_in_units(own, true, size)
    allowed = MARGIN * max(op.bound.of(got.dtype), own_error)
    if error <= allowed:
        return []
    return [say(what=what, error=error, reference_error=own_error, allowed=allowed)]


def _is_same(before: Tensor, after: Tensor) -> bool:
    """Compare bit for bit but for the payload of what is not a number."""
    both_nan = (
        before.isnan() & after.isnan() if before.is_floating_point() else torch.zeros((), dtype=torch.bool)
    )
    return bool(((before == after) | both_nan.to(before.device)).all())


def _as_float64(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

"""Hold calls of a kernel against its op's reference while a model runs."""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import Kernel, Op
from sglang_fl.ops.compare import error_in_units

T = TypeVar("T")

__all__ = ["LARGE", "MARGIN", "Given", "NamedRows", "OpCheck", "Violation", "violations"]

logger = logging.getLogger(__name__)

#: How much further from float64 than its contract's bound a result must be to count as wrong: the bound is
#: for the inputs of the contract's cases; a model's may make a sum cancel a little more.
MARGIN = 4.0
#: Bytes from which on an argument that no kernel may write is not copied, only summed up, and a weight is not
#: brought to float64 as a whole: the weights of all experts of a layer fill a large part of the memory.
LARGE = 1 << 24


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
    call : the arguments as they were before the call, for a reproduction; large ones are the caller's own
        tensors, so whoever keeps them copies them while the report is made
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
    report : called with each violation, after the call; the kernel's results are served all the same
    every : one call in so many of each layer is checked
    is_on : whether calls are checked now
    skip : asked before a check: True leaves the call alone (a graph is being captured)
    look : ``look(op, layer, arguments, results)``, called for each checked call
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
            if not self.is_due(calls):
                return kernel(*args, **kwargs)
            arguments = op.signature.bind(*args, **kwargs).arguments
            rows = self.attempt(op.name, lambda: NamedRows(op, arguments))
            before = rows and self.attempt(op.name, lambda: Given(op, rows.of(arguments)))
            results = kernel(*args, **kwargs)
            if rows and before:
                self.attempt(op.name, lambda: self._examine(op, layer(), before, results, rows.of(arguments)))
            return results

        checked.__signature__ = inspect.signature(kernel)  # type: ignore[attr-defined]
        return checked

    def is_due(self, calls: int) -> bool:
        """Whether a layer's call with this number, from 1 on, is to be checked."""
        return self.is_on and not (calls - 1) % self.every and not self.skip()

    def _examine(self, op: Op, layer: str, before: "Given", results: Any, after: Mapping[str, Any]) -> None:
        if self.look is not None:
            self.look(op, layer, before.arguments, results)
        for violation in violations(op, layer, before, results, after):
            self.report(violation)

    def attempt(self, name: str, step: Callable[[], T]) -> T | None:
        """Do a step of a check; whatever it raises must not reach the model.

        Parameters
        ----------
        name : of what is checked, for ``unchecked``
        step : the step
        """
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - it is logged, once for each name
            if name not in self.unchecked:
                is_refused = isinstance(error, UnsupportedError)
                self.unchecked[name] = str(error) if is_refused else f"{type(error).__name__}: {error}"
                logger.warning("calls of %s cannot be checked: %s", name, self.unchecked[name])
            return None


class NamedRows:
    """The rows of large pools that a call names, as it names them before it: a KV cache fills the memory.

    What a kernel writes into other rows of such a pool is not looked at.

    Parameters
    ----------
    op : the op
    arguments : bound to its signature, before the call
    """

    def __init__(self, op: Op, arguments: Mapping[str, Any]) -> None:
        pools = {name: of for name, of in op.writes_rows.items() if arguments.get(name) is not None}
        is_large = any(_is_large(arguments[name]) for name in pools)
        self._pools = pools if is_large else {}
        self._indices = {of: arguments[of].clone() for of in set(self._pools.values())}
        self._rows, self._numbers = {}, {}
        for of, indices in self._indices.items():
            named, numbers = torch.unique(indices, return_inverse=True)
            negative = int((named < 0).sum())  # these name no row, and stay negative
            self._rows[of] = named[negative:].long()
            self._numbers[of] = (numbers - negative).to(indices.dtype)

    def of(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a call, before or after it is made, with these rows alone and their numbers among them.

        An index that has changed differs here, too.
        """
        pools = {name: arguments[name][self._rows[of]] for name, of in self._pools.items()}
        indices = {of: numbers + (arguments[of] - self._indices[of]) for of, numbers in self._numbers.items()}
        return {**arguments, **pools, **indices}


class Given:
    """The arguments of a call, as they are before it.

    What the kernel may write, and what is small, is copied. Of the rest the sum of its bits is kept, which
    tells whether it was written all the same.

    Parameters
    ----------
    op : the op
    arguments : bound to its signature
    """

    def __init__(self, op: Op, arguments: Mapping[str, Any]) -> None:
        self._may_write = op.may_write(arguments)
        self.arguments = {name: self._kept(name, value) for name, value in arguments.items()}
        self._sums = {
            name: _sum_of_bits(value)
            for name, value in arguments.items()
            if isinstance(value, Tensor) and self.arguments[name] is value
        }

    def _kept(self, name: str, value: Any) -> Any:
        is_copied = isinstance(value, Tensor) and (name in self._may_write or _bytes(value) < LARGE)
        return value.clone() if is_copied else value

    def was_written(self, name: str, after: Tensor) -> bool:
        """Whether the call has changed an argument that it must not."""
        if name in self._may_write:
            return False
        if name in self._sums:
            return self._sums[name] != _sum_of_bits(after)
        return not _is_same(self.arguments[name], after)

    def exact(self, op: Op) -> dict[str, Any]:
        """Return the arguments for which the reference computes in float64.

        Large weights stay as they are: a reference brings what it uses of them to the dtype of the rows.
        """
        # A tensor for the result has the dtype of the rows.
        widened = (*op.rows, *op.updates, *op.of_sequences, *op.writes)
        return {
            name: value if name not in widened and _is_large(value) else _as_float64(value)
            for name, value in self.arguments.items()
        }

    def plain(self, op: Op) -> dict[str, Any]:
        """Return the arguments for a call of the reference, which writes nothing but what the op updates."""
        updated = op.updated(self.arguments)
        return {name: value.clone() if name in updated else value for name, value in self.arguments.items()}


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _is_large(value: Any) -> bool:
    return isinstance(value, Tensor) and _bytes(value) >= LARGE


#: Integers of so many bytes, to read a tensor's bits as.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _sum_of_bits(tensor: Tensor) -> int:
    """Return the sum of a tensor's elements, read as integers; it needs no memory of the tensor's size."""
    return int(tensor.detach().view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64))


def violations(op: Op, layer: str, before: Given, results: Any, after: Mapping[str, Any]) -> list[Violation]:
    """Compare the results of one call with the reference, and what it wrote with the contract.

    Parameters
    ----------
    op, layer : see ``Violation``
    before : the arguments, as they were before the call
    results : what the kernel returned
    after : the arguments themselves, after the call
    """
    tensors = {name: value for name, value in before.arguments.items() if isinstance(value, Tensor)}
    say = functools.partial(
        Violation,
        op.name,
        layer,
        dtype=str(next(t.dtype for t in tensors.values() if t.is_floating_point())).removeprefix("torch."),
        shapes={name: tuple(value.shape) for name, value in tensors.items()},
        call=before.arguments,
    )
    wrong = functools.partial(say, error=torch.inf, reference_error=0.0, allowed=0.0)
    found = [
        wrong(what=f"it wrote {name}, which the contract does not allow")
        for name in tensors
        if before.was_written(name, after[name])
    ]
    unlike = op.why_not_like(results, op.results_like(before.arguments))
    if unlike is not None:
        return [*found, wrong(what=unlike)]
    invalid = op.why_invalid and op.why_invalid(_as_tuple(results), before.arguments)
    if invalid:
        return [*found, wrong(what=invalid)]
    exact, plain = before.exact(op), before.plain(op)
    as_given = {name: exact[name].clone() for name in op.updated(exact)}
    truth, own = op.reference(**exact), op.reference(**plain)
    sets = (op.results(results, dict(after)), op.results(truth, exact), op.results(own, plain))
    if op.as_good is not None and op.as_good(sets[0], sets[1], before.arguments):
        return found
    sizes = _as_tuple(op.magnitude(sets[1], **exact | as_given)) if op.magnitude else sets[1]
    for index, (got, true, mine, size) in enumerate(zip(*sets, sizes, strict=True)):
        found += _of_result(op, say, before.arguments, index, got, true, mine, size)
    return found


def _as_tuple(results: Any) -> tuple[Tensor, ...]:
    return (results,) if isinstance(results, Tensor) else results


def _of_result(
    op: Op,
    say: Callable[..., Violation],
    before: Mapping[str, Any],
    index: int,
    got: Tensor,
    true: Tensor,
    own: Tensor,
    size: Tensor,
) -> list[Violation]:
    what = f"result {index}"
    if got.shape != true.shape:
        shapes = f"{what} is {tuple(got.shape)}, not {tuple(true.shape)}"
        return [say(what=shapes, error=torch.inf, reference_error=0.0, allowed=0.0)]
    if not got.is_floating_point():
        if torch.equal(got, own.to(got.dtype)):
            return []
        return [say(what=f"{what} differs", error=torch.inf, reference_error=0.0, allowed=0.0)]
    unit = op.unit_of(got.dtype, before)
    error, own_error = error_in_units(got, true, size, unit), error_in_units(own, true, size, unit)
    allowed = MARGIN * max(op.bound.of(unit), own_error)
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

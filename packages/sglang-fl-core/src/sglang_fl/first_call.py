"""The first call of an op: try the candidates in order, harm nothing, then commit to one.

All decisions fall here, where the layer is complete on every generation of SGLang. Afterwards the
bound kernel is called directly, and nothing of this module is left on the path.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sglang_fl.dispatch_log import DispatchLog
from sglang_fl.errors import ContractError, NoImplementationError, UnsupportedError
from sglang_fl.ops import Kernel, Op, Outputs
from sglang_fl.resolution import Resolution
from sglang_fl.vendor import OpImpl, load_target

__all__ = ["Choice", "Forward", "first_call", "load_kernel"]

Forward = Callable[..., Any]

logger = logging.getLogger(__name__)


class Trial:
    """A kernel in its first call.

    It runs on the caller's own tensors, so that what works here works with these strides later;
    what it may write is kept aside and put back if it raises. It takes the options that the kernel takes.

    Parameters
    ----------
    op : the op
    kernel : the implementation's function
    """

    def __init__(self, op: Op, kernel: Kernel) -> None:
        self._op = op
        self._kernel = kernel
        self.__signature__ = inspect.signature(kernel)
        self.has_run = False
        self.error: Exception | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Outputs:
        """Run the kernel; on any exception restore its arguments and raise it again."""
        arguments = self._op.signature.bind(*args, **kwargs).arguments
        kept = [_Kept(self._op, name, arguments) for name in self._op.may_write(arguments)]
        try:
            outputs = self._kernel(*args, **kwargs)
        except Exception as error:
            for argument in kept:
                argument.restore()
            self.error = error
            raise
        self.has_run = True
        return outputs


class _Kept:
    """A copy of what a kernel may write of one argument: all of it, or the rows that the call names."""

    def __init__(self, op: Op, name: str, arguments: Mapping[str, Any]) -> None:
        self._tensor: Tensor = arguments[name]
        self._rows = op.written_rows(name, arguments)
        self._copy = self._tensor.clone() if self._rows is None else self._tensor[self._rows]

    def restore(self) -> None:
        if self._rows is None:
            self._tensor.copy_(self._copy)
        else:
            self._tensor[self._rows] = self._copy


_loaded: dict[OpImpl, Kernel | Exception] = {}


def load_kernel(op: Op, impl: OpImpl) -> Kernel:
    """Import an implementation's kernel and hold its signature against the contract.

    Once in each process, also where it fails: a model asks for the same kernel in every layer.

    Raises
    ------
    VendorError : no such function, or another signature
    Exception : whatever importing its module raises
    """
    if impl not in _loaded:
        try:
            kernel = load_target(impl.target)
            op.check_signature(kernel)
            _loaded[impl] = kernel
        except Exception as error:  # noqa: BLE001 - raised below, and at each later request
            _loaded[impl] = error
    found = _loaded[impl]
    if isinstance(found, Exception):
        raise found
    return found


@dataclass(frozen=True)
class Choice:
    """How one layer would run an op.

    Parameters
    ----------
    resolution : the candidates
    bind : ``bind(kernel, fall_through)`` makes the layer's forward; ``fall_through`` is SGLang's own
        forward, for calls that the contract excludes. It raises ``UnsupportedError`` where the kernel does
        not take an option that the layer needs
    """

    resolution: Resolution
    bind: Callable[[Kernel, Forward], Forward]


class _Attempt:
    """A layer on its way to a kernel: the candidate that is tried now, and those after it."""

    def __init__(self, choice: Choice, layer_class: str, fall_through: Forward) -> None:
        self._resolution = choice.resolution
        self._layer_class = layer_class
        self._bind = lambda kernel: choice.bind(kernel, fall_through)
        self._waiting = iter(choice.resolution.candidates)
        self._reasons: list[str] = []
        self.impl: OpImpl
        self.trial: Trial
        self.forward: Forward
        self._advance()

    def _advance(self) -> None:
        """Take the next candidate whose kernel can be loaded and takes the layer's options."""
        for impl in self._waiting:
            self.impl = impl
            try:
                kernel = load_kernel(self._resolution.op, impl)
            except Exception as error:  # noqa: BLE001 - any fault of a foreign module; it is reported
                self._reject(error)
                continue
            self.trial = Trial(self._resolution.op, kernel)
            try:
                self.forward = self._bind(self.trial)
            except UnsupportedError as lack:
                self._pass_over(lack)
                continue
            return
        raise NoImplementationError(
            f"{self._layer_class}: no implementation of {self._resolution.op} can run it: "
            f"{'; '.join(self._reasons)}"
        )

    def _reject(self, error: Exception) -> None:
        """Go on without a candidate that failed."""
        if self._resolution.strict:
            raise error
        self._reasons.append(f"{self.impl}: {type(error).__name__}: {error}")
        if _is_first((self._layer_class, self.impl.id)):
            logger.warning(
                "%s: %s of %s failed in its first call and is replaced: %s: %s",
                *(self._layer_class, self.impl, self.impl.op, type(error).__name__, error),
            )
            logger.debug("where it failed:", exc_info=error)

    def _pass_over(self, lack: UnsupportedError) -> None:
        """Go on without a candidate that says by its signature that it cannot run this layer."""
        self._reasons.append(f"{self.impl}: {lack}")
        if _is_first((self._layer_class, self.impl.id, str(lack))):
            logger.info(
                "%s: %s of %s cannot run this layer: %s", self._layer_class, self.impl, self.impl.op, lack
            )

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer's forward with one candidate after the other until one does not fail."""
        while True:
            try:
                return self.forward(*args, **kwargs)
            except Exception as error:
                # What SGLang's own path raises, and a call that the contract excludes, is no fault
                # of the kernel.
                if error is not self.trial.error or isinstance(error, ContractError):
                    raise
                self._reject(error)
                self._advance()

    def bound(self) -> Forward:
        """Return the forward with the kernel itself."""
        return self._bind(load_kernel(self._resolution.op, self.impl))


def first_call(
    choose: Callable[[], Choice | None],
    layer_class: str,
    own: Forward,
    commit: Callable[[Forward, Forward], None],
    log: DispatchLog,
) -> Forward:
    """Return a callable that finds its kernel when it is called for the first time.

    Parameters
    ----------
    choose : asked once, in the first call, when the layer is complete; None leaves the layer to SGLang for
        good
    layer_class : for the dispatch log
    own : SGLang's own forward of the layer
    commit : called once as ``commit(first, forward)`` to replace the one by the other
    log : written after success, never before

    Returns
    -------
    Callable with the layer's forward signature. A call that fell through decides nothing; the next
    one tries again. It raises what the kernel raised if ``resolution.strict``, else
    ``NoImplementationError`` once every candidate has failed.
    """

    @functools.wraps(own)
    def fall_through(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        log.write(layer_class, "sglang(native)")
        return result

    attempt: _Attempt | None = None
    committed: Forward | None = None

    def decide(forward: Forward) -> None:
        nonlocal committed
        committed = forward
        commit(first, forward)

    def first(*args: Any, **kwargs: Any) -> Any:
        nonlocal attempt
        if committed is not None:  # whoever keeps this callable pays one comparison
            return committed(*args, **kwargs)
        if attempt is None:
            choice = choose()
            if choice is None:
                decide(own)
                return fall_through(*args, **kwargs)
            attempt = _Attempt(choice, layer_class, fall_through)
        try:
            result = attempt.run(*args, **kwargs)
        except ContractError as error:
            logger.debug("%s: left to SGLang: %s", layer_class, error)
            return fall_through(*args, **kwargs)
        if attempt.trial.has_run:
            decide(attempt.bound())
            log.write(layer_class, f"{attempt.impl.kind}({attempt.impl.id})")
        return result

    return first


_said: set[tuple[str, ...]] = set()


def _is_first(saying: tuple[str, ...]) -> bool:
    """Whether this has not been said in this process: every layer of a model would say it again."""
    is_first = saying not in _said
    _said.add(saying)
    return is_first

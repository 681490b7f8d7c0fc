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

from sglang_fl.dispatch.resolution import Resolution
from sglang_fl.errors import ContractError, NoImplementationError, UnsupportedError
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.ops import Kernel, Op, Outputs
from sglang_fl.vendor import OpImpl, load_target

__all__ = ["Choice", "FirstCall", "Forward", "load_kernel"]

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
    or_own : where no candidate can run the layer, it is SGLang's for good, not an error
    """

    resolution: Resolution
    bind: Callable[[Kernel, Forward], Forward]
    or_own: bool = False


class _Attempt:
    """A layer on its way to a kernel: the candidate that is tried now, and those after it."""

    def __init__(self, choice: Choice, layer_class: str, fall_through: Forward) -> None:
        self._resolution = choice.resolution
        self._layer_class = layer_class
        self._bind: Callable[[Kernel], Forward] = lambda kernel: choice.bind(kernel, fall_through)
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
            f"{'; '.join(self._reasons) or 'there is none for this chip'}"
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


class FirstCall:
    """A layer's forward that finds its kernel when it is called for the first time.

    A call that fell through decides nothing; the next one tries again.

    Parameters
    ----------
    choose : asked once, in the first call, when the layer is complete; None leaves the layer to SGLang for
        good
    layer_class : for the dispatch log
    own : SGLang's own forward of the layer
    commit : called once as ``commit(first, forward)`` to replace this object by the forward found
    log : written after success, never before
    """

    def __init__(
        self,
        choose: Callable[[], Choice | None],
        layer_class: str,
        own: Forward,
        commit: Callable[[Forward, Forward], None],
        log: DispatchLog,
    ) -> None:
        self._choose = choose
        self._layer_class = layer_class
        self._own = own
        self._commit = commit
        self._log = log
        self._choice: Choice | None = None
        self._attempt: _Attempt | None = None
        self._decided: Forward | None = None

        @functools.wraps(own)
        def fall_through(*args: Any, **kwargs: Any) -> Any:
            result = own(*args, **kwargs)
            log.write(layer_class, "sglang(native)")
            return result

        self._fall_through: Forward = fall_through
        self.__name__ = getattr(own, "__name__", layer_class)  # SGLang's trace labels a call by it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer.

        Raises
        ------
        NoImplementationError : every candidate has failed, and the layer is not to be left to SGLang
        Exception : what a kernel raised, if the resolution is strict
        """
        if self._decided is not None:  # whoever keeps this object pays one comparison
            return self._decided(*args, **kwargs)
        try:
            attempt = self._started()
            if attempt is None:
                return self._leave(*args, **kwargs)
            result = attempt.run(*args, **kwargs)
        except NoImplementationError as error:
            if self._choice is None or not self._choice.or_own:
                raise
            self._say_left(error)
            return self._leave(*args, **kwargs)
        except ContractError as error:
            self._say_left(error)
            return self._fall_through(*args, **kwargs)
        if attempt.trial.has_run:
            self._decide(attempt.bound())
            self._log.write(self._layer_class, f"{attempt.impl.kind}({attempt.impl.id})")
        return result

    @property
    def op(self) -> Op | None:
        """The op that the layer computes; None where it is SGLang's. The layer must be complete."""
        if self._choice is None:
            self._choice = self._choose()
        return self._choice.resolution.op if self._choice else None

    @property
    def ran(self) -> OpImpl | None:
        """The implementation that runs the layer, once that is decided."""
        return self._attempt.impl if self._attempt and self._decided not in (None, self._own) else None

    def _started(self) -> _Attempt | None:
        """Return the attempt under way, a new one in the first call; None where there is nothing to try."""
        if self._attempt is None:
            self._choice = self._choose()
            if self._choice is not None:
                self._attempt = _Attempt(self._choice, self._layer_class, self._fall_through)
        return self._attempt

    def _say_left(self, reason: Exception) -> None:
        if _is_first((self._layer_class, str(reason))):
            logger.debug("%s: left to SGLang: %s", self._layer_class, reason)

    def _leave(self, *args: Any, **kwargs: Any) -> Any:
        """Give the layer back to SGLang for good."""
        self._decide(self._own)
        return self._fall_through(*args, **kwargs)

    def _decide(self, forward: Forward) -> None:
        self._decided = forward
        self._commit(self, forward)


_said: set[tuple[str, ...]] = set()


def _is_first(saying: tuple[str, ...]) -> bool:
    """Whether this has not been said in this process: every layer of a model would say it again."""
    is_first = saying not in _said
    _said.add(saying)
    return is_first

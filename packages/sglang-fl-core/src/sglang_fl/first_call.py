"""The first call of an op: try the candidates in order, harm nothing, then commit to one.

All decisions fall here, where the layer is complete on every generation of SGLang. Afterwards the
bound kernel is called directly, and nothing of this module is left on the path.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sglang_fl.dispatch_log import DispatchLog
from sglang_fl.errors import ContractError, NoImplementationError
from sglang_fl.ops import Kernel, Op, Outputs
from sglang_fl.resolution import Resolution
from sglang_fl.vendor import OpImpl, load_target

__all__ = ["Forward", "first_call", "left_to_sglang", "load_kernel"]

Forward = Callable[..., Any]

logger = logging.getLogger(__name__)


class Trial:
    """A kernel in its first call.

    It runs on the caller's own tensors, so that what works here works with these strides later;
    what it may write is kept aside and put back if it raises.

    Parameters
    ----------
    op : the op
    kernel : the implementation's function
    """

    def __init__(self, op: Op, kernel: Kernel) -> None:
        self._op = op
        self._kernel = kernel
        self.has_run = False
        self.error: Exception | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Outputs:
        """Run the kernel; on any exception restore its arguments and raise it again."""
        arguments = self._op.signature.bind(*args, **kwargs).arguments
        kept: dict[str, Tensor] = {name: arguments[name].clone() for name in self._op.may_write(arguments)}
        try:
            outputs = self._kernel(*args, **kwargs)
        except Exception as error:
            for name, copy in kept.items():
                arguments[name].copy_(copy)
            self.error = error
            raise
        self.has_run = True
        return outputs


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


class _Attempt:
    """A layer on its way to a kernel: the candidate that is tried now, and those after it."""

    def __init__(self, resolution: Resolution, layer_class: str, bind: Callable[[Kernel], Forward]) -> None:
        self._resolution = resolution
        self._layer_class = layer_class
        self._bind = bind
        self._waiting = iter(resolution.candidates)
        self.impl: OpImpl
        self.trial: Trial
        self.forward: Forward
        self._advance()

    def _advance(self) -> None:
        """Take the next candidate whose kernel can be loaded."""
        for impl in self._waiting:
            self.impl = impl
            try:
                kernel = load_kernel(self._resolution.op, impl)
            except Exception as error:  # noqa: BLE001 - any fault of a foreign module; it is reported
                self._reject(error)
                continue
            self.trial = Trial(self._resolution.op, kernel)
            self.forward = self._bind(self.trial)
            return
        tried = ", ".join(impl.id for impl in self._resolution.candidates)
        raise NoImplementationError(
            f"{self._layer_class}: every implementation of {self._resolution.op} failed in its first "
            f"call: {tried}. The causes are logged above."
        )

    def _reject(self, error: Exception) -> None:
        if self._resolution.strict:
            raise error
        _report(self._layer_class, self.impl, error)

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
    resolution: Resolution,
    layer_class: str,
    own: Forward,
    bind: Callable[[Kernel, Forward], Forward],
    commit: Callable[[Forward, Forward], None],
    log: DispatchLog,
) -> Forward:
    """Return a callable that finds its kernel when it is called for the first time.

    Parameters
    ----------
    resolution : the candidates
    layer_class : for the dispatch log
    own : SGLang's own forward of the layer
    bind : ``bind(kernel, fall_through)`` makes the layer's forward; ``fall_through`` is ``own``, said
        in the dispatch log. Where it returns ``fall_through`` itself, the layer is SGLang's for good
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
            attempt = _Attempt(resolution, layer_class, lambda kernel: bind(kernel, fall_through))
        if attempt.forward is fall_through:
            decide(own)
            return fall_through(*args, **kwargs)
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


def left_to_sglang(
    layer_class: str, own: Forward, commit: Callable[[Forward, Forward], None], log: DispatchLog
) -> Forward:
    """Return a callable that is SGLang's own, but says in the dispatch log that it has run.

    Its first call commits ``own`` itself: SGLang compares what a layer holds with its own methods.
    """

    @functools.wraps(own)
    def first(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        commit(first, own)
        log.write(layer_class, "sglang(native)")
        return result

    return first


_reported: set[tuple[str, str]] = set()


def _report(layer_class: str, impl: OpImpl, error: Exception) -> None:
    """Warn that a candidate failed; once for each layer class and implementation."""
    if (layer_class, impl.id) in _reported:
        return
    _reported.add((layer_class, impl.id))
    logger.warning(
        "%s: %s of %s failed in its first call and is replaced: %s: %s",
        layer_class,
        impl.id,
        impl.op,
        type(error).__name__,
        error,
    )
    logger.debug("where it failed:", exc_info=error)

"""The first call of an op: try the candidates in order, harm nothing, then commit to one.

All decisions fall here, where the layer is complete on every generation of SGLang. Afterwards the
bound kernel is called directly, and nothing of this module is left on the path.
"""

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sglang_fl.dispatch_log import DispatchLog
from sglang_fl.errors import NoImplementationError
from sglang_fl.ops import Kernel, Op, Outputs
from sglang_fl.resolution import Resolution
from sglang_fl.vendor import OpImpl, load_target

__all__ = ["Bind", "Forward", "first_call"]

Forward = Callable[..., Any]
Bind = Callable[[Kernel], Forward]

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
        self.has_failed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Outputs:
        """Run the kernel; on any exception restore its arguments and raise it again."""
        arguments = self._op.signature.bind(*args, **kwargs).arguments
        kept: dict[str, Tensor] = {}
        try:
            for name in self._op.may_write(arguments):
                kept[name] = arguments[name].clone()
            outputs = self._kernel(*args, **kwargs)
        except Exception:
            for name, copy in kept.items():
                arguments[name].copy_(copy)
            self.has_failed = True
            raise
        self.has_run = True
        return outputs


def load_kernel(op: Op, impl: OpImpl) -> Kernel:
    """Import an implementation's kernel and hold its signature against the contract.

    Raises
    ------
    VendorError : no such function, or another signature
    Exception : whatever importing its module raises
    """
    kernel = load_target(impl.target)
    op.check_signature(kernel)
    return kernel


def first_call(
    resolution: Resolution,
    layer_class: str,
    bind: Bind,
    commit: Callable[[Forward, Forward], None],
    log: DispatchLog,
) -> Forward:
    """Return a callable that finds its kernel when it is called for the first time.

    Parameters
    ----------
    resolution : the candidates
    layer_class : for the dispatch log
    bind : makes the layer's forward from a kernel; it may let a call fall through to SGLang
    commit : called once as ``commit(first, bound)`` to replace the one by the other
    log : written after success, never before

    Returns
    -------
    Callable with the layer's forward signature. A call that fell through decides nothing; the next
    one tries again. It raises what the kernel raised if ``resolution.strict``, else
    ``NoImplementationError`` once every candidate has failed.
    """
    committed: Forward | None = None

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal committed
        if committed is not None:  # whoever keeps the first callable pays one comparison
            return committed(*args, **kwargs)
        for impl in resolution.candidates:
            trial: Trial | None = None
            try:
                trial = Trial(resolution.op, load_kernel(resolution.op, impl))
                result = bind(trial)(*args, **kwargs)
            except Exception as error:
                if trial is not None and not trial.has_failed:
                    raise  # SGLang's own path raised, not the kernel
                if resolution.strict:
                    raise
                _report(layer_class, impl, error)
                continue
            if trial.has_run:
                committed = bind(load_kernel(resolution.op, impl))
                commit(forward, committed)
                log.write(layer_class, f"{impl.kind}({impl.id})")
            return result
        tried = ", ".join(impl.id for impl in resolution.candidates)
        raise NoImplementationError(
            f"{layer_class}: every implementation of {resolution.op} failed in its first call: {tried}. "
            f"The causes are logged above."
        )

    return forward


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

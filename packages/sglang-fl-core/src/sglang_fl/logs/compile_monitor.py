"""Warns of Triton kernels that are compiled or tuned where that hurts: in a graph capture, or under traffic.

Either stalls every request of a server; tuning also synchronizes, which ruins a capture. What Triton takes
from its cache on disk is neither. Inert where Triton is missing, or too old to tell.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from sglang_fl.logs.counters import COMPILED, count

__all__ = ["CompileMonitor"]

logger = logging.getLogger(__name__)


class CompileMonitor:
    """Watches Triton in this process; of each kernel it tells once.

    Parameters
    ----------
    device_type : PyTorch's string for the device whose captures count
    """

    def __init__(self, device_type: str) -> None:
        self._device_type = device_type
        self._is_serving = False
        self._told: set[tuple[str, str]] = set()

    def watch(self) -> None:
        """Let Triton tell this monitor from now on, besides whoever it tells already."""
        try:
            from triton import knobs
            from triton.runtime.autotuner import Autotuner
        except ImportError:
            return
        compilation = getattr(knobs, "compilation", None)
        if compilation is not None and hasattr(compilation, "listener"):
            compilation.listener = _also(compilation.listener, self._compiled)
        bench = getattr(Autotuner, "_bench", None)  # FlagGems' tuners, which tell no listener, call it too
        if bench is not None:
            Autotuner._bench = self._telling(bench)

    def expect_none(self) -> None:
        """Take everything that should be compiled as compiled: the server begins to serve."""
        self._is_serving = True

    def _moment(self) -> str | None:
        """Say what is disturbed just now, or None."""
        device = getattr(torch, self._device_type, None)  # never an error: Triton's compiler calls this
        is_capturing = getattr(device, "is_current_stream_capturing", None)
        if is_capturing is not None and is_capturing():
            return "while a graph is captured"
        return "under traffic" if self._is_serving else None

    def _compiled(self, *, src: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            self._tell("compiled", _name(getattr(src, "fn", None), src.name), lambda: _specialization(src))

    def _telling(self, bench: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(bench)
        def telling(tuner: Any, *args: Any, **kwargs: Any) -> Any:
            function = getattr(tuner, "base_fn", None)
            name = _name(function, getattr(function, "__name__", "a kernel"))
            self._tell("tuned", name, lambda: _arguments(getattr(tuner, "nargs", None) or {}))
            return bench(tuner, *args, **kwargs)

        return telling

    def _tell(self, what: str, name: str, details: Callable[[], str]) -> None:
        moment = self._moment()
        if moment is None:
            return
        count(COMPILED, kernel=name)
        is_first = (what, name) not in self._told
        self._told.add((what, name))
        logger.log(
            logging.WARNING if is_first else logging.DEBUG,
            "the Triton kernel %s is %s %s, for %s",
            *(name, what, moment, details()),
        )


def _also(listener: Callable[..., None] | None, ours: Callable[..., None]) -> Callable[..., None]:
    """Return a listener that tells both; SGLang's own watch puts itself in front of it likewise."""
    if listener is None:
        return ours
    theirs = listener

    def both(**told: Any) -> None:
        theirs(**told)
        ours(**told)

    return both


def _name(function: Any, name: str) -> str:
    module = getattr(function, "__module__", None)
    return f"{module}.{name}" if module else name


def _specialization(source: Any) -> str:
    """Write what a kernel is compiled for: ``x: *bf16, n: i32, BLOCK=1024``."""
    constants = {
        path[0] if isinstance(path, tuple) and len(path) == 1 else path: value
        for path, value in (getattr(source, "constants", None) or {}).items()
    }
    signature: Mapping[str, Any] = getattr(source, "signature", None) or {}
    parts = (
        f"{name}={constants.get(number, constants.get(name))}" if kind == "constexpr" else f"{name}: {kind}"
        for number, (name, kind) in enumerate(signature.items())
    )
    return ", ".join(parts) or "an unknown specialization"


def _arguments(named: Mapping[str, Any]) -> str:
    """Write what a kernel is tuned for: ``x: bfloat16 (16, 896), n=896``."""
    return ", ".join(_written(named)) or "unknown arguments"


def _written(named: Mapping[str, Any]) -> Iterator[str]:
    for name, value in named.items():
        if isinstance(value, torch.Tensor):
            yield f"{name}: {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        else:
            yield f"{name}={value}"

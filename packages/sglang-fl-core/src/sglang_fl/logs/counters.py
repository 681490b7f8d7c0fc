"""Counters that SGLang's ``/metrics`` shows beside its own, where its metrics are on (``--enable-metrics``).

SGLang collects what its processes count in files of ``prometheus_client``, which it brings along. Until they
are enabled, counting does nothing.
"""

from typing import Any

__all__ = ["COMPILED", "COUNTERS", "FALLBACKS", "LAYERS", "LEFT", "count", "enable"]

LAYERS = "sglang_fl_layers"
LEFT = "sglang_fl_calls_left_to_sglang"
FALLBACKS = "sglang_fl_fallbacks"
COMPILED = "sglang_fl_kernels_compiled_late"

#: Each with its labels, and what it counts. ``/metrics`` adds ``_total`` to the names.
COUNTERS = {
    LAYERS: (("layer_class", "ran"), "Layers by what runs them, as the dispatch log tells it"),
    LEFT: (
        ("layer_class", "reason"),
        "Calls that a kernel could not take and SGLang ran; # is any number",
    ),
    FALLBACKS: (("op", "implementation"), "Kernels that failed in a first call and were replaced"),
    COMPILED: (("kernel",), "Triton kernels compiled or tuned under traffic, or while a graph is captured"),
}
_enabled: dict[str, Any] = {}


def enable() -> None:
    """Count from now on; SGLang must have said where by then."""
    from prometheus_client import Counter

    if not _enabled:
        _enabled.update({name: Counter(name, about, labels) for name, (labels, about) in COUNTERS.items()})


def count(name: str, **labels: str) -> None:
    """Count one more.

    Parameters
    ----------
    name : one of ``COUNTERS``
    labels : its labels
    """
    if _enabled:
        _enabled[name].labels(**labels).inc()

"""The ops: what each computes, and how far an implementation may be from it.

``OPS`` holds one for each file of this folder. Importing this package imports neither torch nor an op: the
module of an op is imported when ``OPS`` is asked for the op, the classes when they are first named.
"""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sglang_fl.ops.catalogue import Catalogue

if TYPE_CHECKING:
    from sglang_fl.ops.op import Bound, Case, Kernel, Op, Outputs, lacking, with_options
    from sglang_fl.ops.shared.kv_cache import KV_CACHE, check_kv_cache
    from sglang_fl.ops.shared.overlap import shares_memory, unshared
    from sglang_fl.ops.shared.routing import renormalized

__all__ = [
    "KV_CACHE",
    "OPS",
    "Bound",
    "Case",
    "Kernel",
    "Op",
    "Outputs",
    "check_kv_cache",
    "lacking",
    "renormalized",
    "shares_memory",
    "unshared",
    "with_options",
]

#: Read-only: what all packages share, none may change.
OPS: Mapping[str, "Op"] = Catalogue(__name__, __path__)

#: Where the names lie that are not in ``op``.
_ELSEWHERE = {
    "KV_CACHE": "shared.kv_cache",
    "check_kv_cache": "shared.kv_cache",
    "renormalized": "shared.routing",
    "shares_memory": "shared.overlap",
    "unshared": "shared.overlap",
}

if not TYPE_CHECKING:  # a type checker would take every name for one that there is

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = _ELSEWHERE.get(name, "op")
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)

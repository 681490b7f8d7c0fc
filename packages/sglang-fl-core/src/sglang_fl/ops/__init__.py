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

__all__ = ["OPS", "Bound", "Case", "Kernel", "Op", "Outputs", "lacking", "with_options"]

#: Read-only: what all packages share, none may change.
OPS: Mapping[str, "Op"] = Catalogue(__name__, __path__)

if not TYPE_CHECKING:  # a type checker would take every name for one that there is

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.op"), name)

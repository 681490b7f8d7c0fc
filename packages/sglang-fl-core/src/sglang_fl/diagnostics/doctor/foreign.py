"""Variables that are not ours: those of NCCL, Gloo, Triton and the drivers.

``settings`` is the one reader of our own variables, because they have a meaning, a type and a priority
there. Those of other libraries have none for us: doctor only looks at what these libraries will read, and
does so here alone.
"""

import os
from collections.abc import Mapping

from sglang_fl.logs.redaction import HIDDEN, is_secret

__all__ = ["as_set", "child_environment", "variable", "variables"]

#: Written by a server, and looked at by a check of their own: a child that only tries an import keeps off.
_OUTPUTS = (
    *("SGLANG_FL_DISPATCH_LOG", "SGLANG_FL_KEEP_CALLS", "SGLANG_FL_KEEP_CALLS_EACH"),
    *("SGLANG_FLAGGEMS_RECORD", "SGLANG_FLAGGEMS_LOG_PATH"),
)


def variable(name: str) -> str | None:
    """Return another library's variable; an empty one counts as unset."""
    return os.environ.get(name) or None


def as_set(name: str, default: str) -> str:
    """Return another library's variable where an empty one is not an unset one."""
    return os.environ.get(name, default)


def variables(prefixes: tuple[str, ...]) -> dict[str, str]:
    """Return the variables with one of these prefixes, secrets redacted, by name."""
    found = {name: text for name, text in os.environ.items() if name.startswith(prefixes) and text}
    return {name: HIDDEN if is_secret(name) else text for name, text in sorted(found.items())}


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a child process that tries something and writes no log of a server."""
    kept = {name: text for name, text in os.environ.items() if name not in _OUTPUTS}
    return {**kept, **(extra or {})}

"""Variables that are not ours: those of NCCL, Gloo, Triton and the drivers, and which are secrets.

``settings`` is the one reader of our own variables, because they have a meaning, a type and a priority
there. Those of other libraries have none for us: doctor only looks at what these libraries will read, and
does so here alone.
"""

import os
from collections.abc import Mapping

__all__ = ["child_environment", "redacted", "shown", "variable", "variables"]

_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")
#: A shorter text would be found in innocent words.
_SHORTEST = 4
#: Written by a server, and looked at by a check of their own: a child that only tries an import keeps off.
_OUTPUTS = ("SGLANG_FL_DISPATCH_LOG", "SGLANG_FLAGGEMS_RECORD", "SGLANG_FLAGGEMS_LOG_PATH")


def variable(name: str) -> str | None:
    """Return another library's variable; an empty one counts as unset."""
    return os.environ.get(name) or None


def variables(prefixes: tuple[str, ...]) -> dict[str, str]:
    """Return the variables with one of these prefixes, secrets redacted, by name."""
    found = {name: text for name, text in os.environ.items() if name.startswith(prefixes) and text}
    return {name: shown(name, text) for name, text in sorted(found.items())}


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a child process that tries something and writes no log of a server."""
    kept = {name: text for name, text in os.environ.items() if name not in _OUTPUTS}
    return {**kept, **(extra or {})}


def _is_secret(name: str) -> bool:
    return any(word in name.upper() for word in _SECRET)


def shown(name: str, text: str) -> str:
    """Return a variable's text as an output may show it."""
    return "***" if _is_secret(name) else text


def redacted(text: str) -> str:
    """Return a text in which no secret of the environment stands, whoever has written it."""
    secrets = [value for name, value in os.environ.items() if _is_secret(name) and len(value) >= _SHORTEST]
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text

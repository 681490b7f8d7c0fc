"""Every error that sglang-fl raises on purpose, and how a message shows what a user has written.

The plugin prints the message of a ``SglangFlError`` and ends the process with code 2, so a
message is complete in itself: the variable or argument, the text as given, the valid choices.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from sglang_fl.foreign_names import NAMES

__all__ = [
    "REFUSALS",
    "ContractError",
    "NoImplementationError",
    "SeamError",
    "SettingsError",
    "SglangFlError",
    "UnsupportedError",
    "VendorError",
    "choices",
]

T = TypeVar("T")

#: From which similarity on a name may be what was meant: ``rope`` is not what ``nope`` meant.
_ALIKE = 0.7
#: Complaints of one kind that are printed; the rest is counted.
_MOST = 5
#: Characters of a line, and of a text in quotes, that are shown.
_LONGEST, _LONGEST_QUOTED = 1500, 200


class SglangFlError(Exception):
    """Something a user, a vendor or SGLang must change. Its text is meant to be read."""

    def __init__(self, text: object = "") -> None:
        super().__init__(printable(str(text)))


class SettingsError(SglangFlError):
    """A setting is malformed, contradictory, or asks for what this machine has not."""


class VendorError(SglangFlError):
    """A vendor package's object or target is not what the vendor contract asks for."""


class SeamError(SglangFlError):
    """The method of SGLang that layer 2 hooks is not there, or is not ours after hooking."""


class ContractError(SglangFlError, ValueError):
    """An op was called with arguments that its contract excludes."""


class UnsupportedError(SglangFlError):
    """A kernel cannot do what the contract allows; raised before it has written anything.

    In a layer's first call the next candidate runs then. A later call that is refused is SGLang's. So a
    kernel refuses by what rarely changes for a layer: dtypes, width, style. A limit on the number of tokens
    it must handle itself.
    """


#: What a kernel raises before it has written anything: the call is not its own.
REFUSALS = (ContractError, UnsupportedError)


class NoImplementationError(SglangFlError):
    """Every candidate of an op failed in its first call."""


def choices(text: str, valid: Iterable[str]) -> str:
    """Say what would have been valid: ``Valid: a, b. Nearest: a.``

    Parameters
    ----------
    text : the text as the user gave it
    valid : the names that would have been accepted; may be empty

    Returns
    -------
    str : one or two sentences; the second says the nearest name, if any, or what is meant by the name that
        another plugin of FlagOS has for it
    """
    names = sorted(valid)
    sentence = f"Valid: {', '.join(names) or 'none'}."
    ours = [name for name in NAMES.get(text.lower(), ()) if name in names]
    if ours:
        return f"{sentence} {quoted(text)} is called {' or '.join(ours)} here."
    near = nearest(text, names)
    return f"{sentence} Nearest: {near}." if near else sentence


# What follows is for core alone, and no part of the public names above.


class ServerError(SglangFlError):
    """A server that is asked as its client cannot be reached, refuses, or is not what it should be."""


def nearest(text: str, valid: Iterable[str]) -> str | None:
    """Return the valid name that a text is most like, in whatever case it is written, or None.

    That is the one name that begins or ends with it, if it is a whole word of it (``moe``: ``fused_moe``), or
    the one that is spelt most like it. Of several that begin or end with it no one is meant: ``rope`` is not
    ``qk_norm_rope``, because there is ``mrope``.
    """
    by_lower = {name.lower(): name for name in valid}
    wanted = text.lower().replace("-", "_")
    near = [name for name in by_lower if name.startswith(wanted) or name.endswith(wanted)]
    if len(near) != 1 or wanted not in near[0].split("_"):
        near = difflib.get_close_matches(wanted, by_lower, n=1, cutoff=_ALIKE)
    return by_lower[near[0]] if near else None


def few(items: Sequence[T], say: Callable[[T], str] = str) -> list[str]:
    """Return what is to be said of the first items, and how many more there are."""
    said = [say(item) for item in items[:_MOST]]
    return [*said, f"and {len(items) - _MOST} more"] if len(items) > _MOST else said


def quoted(text: str) -> str:
    """Return a text in quotes on one line; of a long one the head."""
    return repr(text if len(text) <= _LONGEST_QUOTED else f"{text[:_LONGEST_QUOTED]}...")


def printable(text: str) -> str:
    """Return a text as it may be printed: what would steer a terminal escaped, long lines cut."""
    if text.isprintable() and len(text) <= _LONGEST:
        return text
    return "\n".join(_line(line) for line in text.split("\n"))


def _line(line: str) -> str:
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST - 40]}... ({len(line)} characters)"
    if line.isprintable():
        return line
    escaped = (char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
    return "".join(escaped)

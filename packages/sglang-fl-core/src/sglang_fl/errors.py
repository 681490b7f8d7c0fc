"""Every error that sglang-fl raises on purpose, and how an error names the valid choices.

The plugin prints the message of a ``SglangFlError`` and ends the process with code 2, so a
message is complete in itself: the variable or argument, the text as given, the valid choices.
"""

import difflib
from collections.abc import Iterable

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


class SglangFlError(Exception):
    """Something a user, a vendor or SGLang must change. Its text is meant to be read."""


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
    str : one or two sentences; the nearest name is left out where none is near
    """
    names = sorted(valid)
    sentence = f"Valid: {', '.join(names) or 'none'}."
    near = difflib.get_close_matches(text, names, n=1)
    return f"{sentence} Nearest: {near[0]}." if near else sentence

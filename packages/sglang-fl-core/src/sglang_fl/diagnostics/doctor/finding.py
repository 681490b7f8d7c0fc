"""What a check has found out: well, a problem with its remedy, or nothing that can be known."""

from dataclasses import dataclass
from enum import Enum

__all__ = ["Finding", "State", "ok", "problem", "unknown"]


class State(Enum):
    """How a finding ends."""

    OK = "ok"
    PROBLEM = "problem"
    UNKNOWN = "unknown"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Parameters
    ----------
    what : the variable, file or package that was looked at
    state : whether it is well
    text : what was seen
    remedy : what to do about it, in plain words; where all is well, what one could do
    """

    what: str
    state: State
    text: str
    remedy: str = ""


def ok(what: str, text: str, remedy: str = "") -> Finding:
    """Return a finding that all is well."""
    return Finding(what, State.OK, text, remedy)


def problem(what: str, text: str, remedy: str) -> Finding:
    """Return a finding that something must be changed; there is always a remedy to try."""
    return Finding(what, State.PROBLEM, text, remedy)


def unknown(what: str, text: str, remedy: str = "") -> Finding:
    """Return a finding that could not be made."""
    return Finding(what, State.UNKNOWN, text, remedy)

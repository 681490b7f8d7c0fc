"""What dispatch logs and records of ATen ops say: what ran where, and what differs between ranks and runs.

Several files count as one log, as those of several ranks do. A line in none of the two formats is not
dropped: it is returned, because a log with foreign lines is not the log that one thinks it is. A file that
has no other lines is refused.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_fl.errors import SettingsError, quoted
from sglang_fl.logs.redaction import redacted
from sglang_fl.logs.shared_file import open_for_reading

__all__ = ["Log", "compared", "read_log"]

_DISPATCH = re.compile(r"\[OOT-DISPATCH\] (?P<what>\S+) → (?P<ran>\S+\(.+\))")
_PLUGIN = re.compile(r"sglang\(plugin(?::(.+))?\)")
_ATEN = re.compile(r"\[DEBUG\] (?P<ran>[\w.]+): GEMS \w+ aten::(?P<what>[\w.]+)")


@dataclass
class Log:
    """What one run has written.

    Parameters
    ----------
    dispatch : layer class -> what ran it, ``flagos(flagos)`` -> number of lines
    aten : ATen op -> the kernel that ran it -> number of lines
    foreign : the lines in neither format: file, number, text
    """

    dispatch: dict[str, Counter[str]] = field(default_factory=dict)
    aten: dict[str, Counter[str]] = field(default_factory=dict)
    foreign: list[dict[str, Any]] = field(default_factory=list)

    def layer_classes(self) -> list[dict[str, Any]]:
        """Return what ran each layer class; more than one where ranks or instances disagree."""
        return [
            {"layer_class": name, "runs": sorted(ran), "lines": ran.total(), "disagree": len(ran) > 1}
            for name, ran in sorted(self.dispatch.items())
        ]

    def kernel_plugins(self) -> list[dict[str, Any]]:
        """Return what kernel plugins of others ran: a layer class, or the class of a model in whole steps."""
        rows = [
            (name, _PLUGIN.fullmatch(ran)) for name, runs in sorted(self.dispatch.items()) for ran in runs
        ]
        return [{"ran": name, "plugin": found[1] or "not named"} for name, found in rows if found]

    def aten_ops(self) -> list[dict[str, Any]]:
        """Return each ATen op that was replaced and called, and the kernel that ran it."""
        return [
            {"op": name, "kernels": sorted(ran), "lines": ran.total()}
            for name, ran in sorted(self.aten.items())
        ]


def read_log(dispatch: Iterable[Path], aten: Iterable[Path]) -> Log:
    """Read the files of one run.

    Raises
    ------
    SettingsError : a file cannot be read, or none of its lines is one of such a log
    """
    log = Log()
    for path in dispatch:
        _read(path, _DISPATCH, "dispatch log (SGLANG_FL_DISPATCH_LOG)", log.dispatch, log.foreign)
    for path in aten:
        _read(path, _ATEN, "record of ATen ops (SGLANG_FLAGGEMS_LOG_PATH)", log.aten, log.foreign)
    return log


def _read(
    path: Path,
    pattern: re.Pattern[str],
    what: str,
    into: dict[str, Counter[str]],
    foreign: list[dict[str, Any]],
) -> None:
    try:
        with open_for_reading(path) as file:
            text = file.read().decode(errors="replace")
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    ours, others = 0, list[tuple[int, str]]()
    for number, line in enumerate(text.split("\n"), 1):
        found = pattern.fullmatch(line.rstrip("\r"))
        if found:
            ours += 1
            into.setdefault(found["what"], Counter())[found["ran"]] += 1
        elif line.strip():
            others.append((number, line))
    if others and not ours:
        raise SettingsError(f"{path}: it is no {what}; its first line is {quoted(redacted(others[0][1]))}")
    foreign += [{"file": str(path), "line": number, "text": _printable(line)} for number, line in others]


def _printable(line: str) -> str:
    """Return the head of a line; what would steer a terminal, escaped."""
    return line[:200].encode("unicode_escape").decode() if not line.isprintable() else line[:200]


def compared(first: Log, second: Log) -> list[dict[str, Any]]:
    """Return what did not run alike in two runs: layer classes first, then ATen ops.

    How often a line was written is no difference: that depends on the number of ranks.
    """
    rows = _compared("layer class", first.dispatch, second.dispatch)
    return rows + _compared("ATen op", first.aten, second.aten)


def _compared(
    kind: str, first: dict[str, Counter[str]], second: dict[str, Counter[str]]
) -> list[dict[str, Any]]:
    rows = []
    for name in sorted(first.keys() | second.keys()):
        ran: Sequence[list[str]] = [sorted(log.get(name, ())) for log in (first, second)]
        if ran[0] != ran[1]:
            rows.append({"kind": kind, "what": name, "first": ran[0], "second": ran[1]})
    return rows

"""``sglang-fl report --issue``: one file for a bug report, without secrets."""

import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sglang_fl.diagnostics import report
from sglang_fl.errors import SettingsError, SglangFlError, printable
from sglang_fl.logs.redaction import redacted
from sglang_fl.logs.shared_file import open_for_reading

__all__ = ["Attached", "write_issue"]

#: Yields the lines of a part; is given what tells a step of it.
_Part = Callable[[Callable[[str], None]], Iterator[str]]
#: Bytes of the end of a log that are shown, and of a line.
TAIL, LINE = 20_000, 500
PACKAGES = (
    *("sglang", "torch", "triton", "flag_gems", "transformers", "sgl-kernel", "sglang-kernel"),
    *("flashinfer-python", "torch_npu", "torch_mlu", "numpy"),
)


@dataclass(frozen=True)
class Attached:
    """What the user attaches.

    Parameters
    ----------
    logs : server's logs, dispatch logs, records of ATen ops; their ends are shown
    certificate : of ``sglang-fl verify``, or None
    """

    logs: Sequence[Path] = ()
    certificate: Path | None = None


def write_issue(path: Path, attached: Attached, say: Callable[[str], None]) -> None:
    """Write a Markdown file for its owner alone: versions, settings, vendors, ops, doctor, ends of logs.

    A part that cannot be told says why; the others are written all the same.

    Parameters
    ----------
    path : a new file
    attached : what is shown beside what the machine says
    say : told of each part before it is written

    Raises
    ------
    SettingsError : the file is there already, or it or an attached one cannot be opened
    """
    ends = [(log, _end(log)) for log in attached.logs]
    certificate = None if attached.certificate is None else _end(attached.certificate)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise SettingsError(f"--issue {str(path)!r}: {error.strerror}. Name a new file.") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        for title, tell in _PARTS.items():
            say(title.lower())
            file.write(_section(title, _told(tell, say)))
        for log, end in ends:
            file.write(_section(f"The end of {log.name}", end))
        if certificate is not None:
            file.write(_section("Certificate", certificate))


def _section(title: str, text: str) -> str:
    shown = "\n".join(printable(line) for line in redacted(text).splitlines())
    return f"## {title}\n\n````\n{shown}\n````\n\n"


def _told(tell: _Part, say: Callable[[str], None]) -> str:
    try:
        return "\n".join(tell(say))
    except SglangFlError as error:
        return f"cannot be told: {error}"


def _end(path: Path) -> str:
    try:
        with open_for_reading(path) as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror or error}") from None
    return "\n".join(line[:LINE] for line in lines)


def _versions(say: Callable[[str], None]) -> Iterator[str]:
    yield f"Python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores"
    ours = sorted(d.name for d in metadata.distributions() if d.name and d.name.startswith("sglang-fl"))
    for name in (*ours, *PACKAGES):
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue


def _settings(say: Callable[[str], None]) -> Iterator[str]:
    rows = [row for row in report.env() if row["source"] != "default"]
    yield from (f"{row['variable']}={row['value']} ({row['source']})" for row in rows)
    if not rows:
        yield "all as by default"


def _vendors(say: Callable[[str], None]) -> Iterator[str]:
    yield from map(_line, report.vendors())


def _ops(say: Callable[[str], None]) -> Iterator[str]:
    yield from map(_line, report.ops())


def _doctor(say: Callable[[str], None]) -> Iterator[str]:
    from sglang_fl.diagnostics import doctor

    for row in doctor.examine(doctor.Launch(None), (), lambda check: say(f"doctor, {check}")):
        finding = row.finding
        yield f"{finding.state} [{row.check}] {finding.what}: {finding.text}" + (
            f" -> {finding.remedy}" if finding.remedy else ""
        )


def _line(row: dict[str, Any]) -> str:
    return json.dumps({name: value for name, value in row.items() if value not in (None, "", [])})


_PARTS: dict[str, _Part] = {
    "Versions": _versions,
    "Settings": _settings,
    "Vendors": _vendors,
    "Ops": _ops,
    "Doctor": _doctor,
}

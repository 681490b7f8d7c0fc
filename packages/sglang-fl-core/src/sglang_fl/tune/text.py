"""What a run has found, as the files and tables that people keep."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang_fl.settings.policy import SGLANG
from sglang_fl.tune.decide import Compared, OpVerdict
from sglang_fl.tune.sides import LAYER_1

__all__ = ["Report", "about_uncalled", "as_data", "as_package_data", "as_rows", "as_yaml"]

#: Columns of a comment.
WIDTH = 118


@dataclass(frozen=True)
class Report:
    """What a run has found.

    Parameters
    ----------
    about : chip, model, command, date and versions, by what they are called
    verdicts : of each op that the model calls and that has something to choose from, by its calls
    calls : how many calls of each were measured
    orders : the choice that is confirmed
    engines : what the engines have shown, by alternative; empty where none was tried
    control : the present choice beside itself; None where none was tried
    conclusion : in one sentence
    reasons : of ops whose choice an engine has decided, how
    uncalled : the ops of which no call was recorded: the model makes none, or one is larger than what is kept
    unmeasured : what was not measured, and why, one line each
    kept : what stood in the file that the user had before, by key
    beside_sglang : of an implementation, how many times as fast its engine was as SGLang's own path, by op
    """

    about: Mapping[str, str]
    verdicts: Sequence[OpVerdict]
    calls: Mapping[str, int]
    orders: Mapping[str, str] = field(default_factory=dict)
    engines: Mapping[str, Compared] = field(default_factory=dict)
    control: Compared | None = None
    conclusion: str = ""
    reasons: Mapping[str, str] = field(default_factory=dict)
    uncalled: Sequence[str] = ()
    unmeasured: Sequence[str] = ()
    kept: Mapping[str, Any] = field(default_factory=dict)
    beside_sglang: Mapping[str, tuple[str, Compared]] = field(default_factory=dict)

    @property
    def wrong(self) -> list[str]:
        """The ops that run at present on what is not exact."""
        return [verdict.op for verdict in self.verdicts if verdict.is_present_wrong]

    def choice(self, op: str) -> str:
        """Return what an op runs on by this choice: an id, or ``sglang``."""
        order = self.orders.get(op)
        if order is None:
            return next((verdict.present for verdict in self.verdicts if verdict.op == op), SGLANG)
        return order.partition("|")[0].removeprefix("impl:")

    def reason(self, verdict: OpVerdict) -> str:
        """Say why an op runs on what it does."""
        reason = self.reasons.get(verdict.op, verdict.reason)
        if verdict.best is not None and verdict.op not in self.orders:
            return f"{verdict.best} was proposed ({verdict.reason}), and the engine did not confirm it"
        return reason


def as_yaml(report: Report) -> str:
    """Return the file for ``SGLANG_FL_CONFIG``."""
    lines = [*_head(report), ""]
    chosen = {op: order for op, order in report.orders.items() if op != LAYER_1}
    settings = {key: value for key, value in report.kept.items() if key != "op_backends"}
    if LAYER_1 in report.orders:
        settings[LAYER_1] = report.orders[LAYER_1]
    lines += [f"{key}: {json.dumps(value)}" for key, value in settings.items()]
    before = report.kept.get("op_backends") or {}
    orders = {**{op: order for op, order in before.items() if op not in chosen}, **chosen}
    if orders:
        lines.append("op_backends:")
    verdicts = {verdict.op: verdict for verdict in report.verdicts}
    for op, order in orders.items():
        if op in report.orders and op in verdicts:
            lines += _comment(_measurement(report, verdicts[op]), "  ")
        lines.append(f"  {op}: {json.dumps(order)}")
    staying = [verdict for verdict in report.verdicts if verdict.op not in report.orders]
    if staying:
        lines += ["", "# These stay as they are:"]
    for verdict in staying:
        lines += _comment(f"{verdict.op} on {verdict.present}: {_measurement(report, verdict)}", "")
    if report.uncalled:
        lines += ["", *_comment(about_uncalled(report), "")]
    return "\n".join(lines) + "\n"


def _head(report: Report) -> Iterator[str]:
    yield "# Written by sglang-fl tune. To serve with it: SGLANG_FL_CONFIG=this file."
    for name, text in report.about.items():
        yield from _comment(f"{name}: {text}", "")
    yield from _comment(report.conclusion, "")
    for name, found in report.engines.items():
        yield from _comment(f"engine {name}: {found}", "")
    if report.control is not None:
        yield from _comment(f"engine control: {report.control}", "")
    for line in report.unmeasured:
        yield from _comment(f"not measured: {line}", "")


def _measurement(report: Report, verdict: OpVerdict) -> str:
    calls = report.calls.get(verdict.op, 0)
    parts = [report.reason(verdict)]
    parts += [f"{impl}: {why}" for impl, why in verdict.others.items()]
    return "; ".join(parts) + (f" (recorded calls: {calls})" if calls else "")


def _comment(text: str, indent: str) -> list[str]:
    begin = f"{indent}# "
    plain = " ".join(text.split())  # a line break would end the comment
    wrap = textwrap.TextWrapper(WIDTH, begin, f"{begin}  ", break_on_hyphens=False, break_long_words=False)
    return wrap.wrap(plain) or [begin.rstrip()]


def about_uncalled(report: Report) -> str:
    """Name the ops of which no call was recorded."""
    return f"Of these no call of the model was recorded: {', '.join(report.uncalled)}."


def as_rows(report: Report) -> list[dict[str, Any]]:
    """Return a row of the table for each op."""
    return [
        {
            "op": verdict.op,
            "present": verdict.present,
            "chosen": report.choice(verdict.op),
            "calls": report.calls.get(verdict.op, 0),
            "why": report.reason(verdict),
            "others": [f"{impl}: {why}" for impl, why in verdict.others.items()],
        }
        for verdict in report.verdicts
    ]


def as_data(report: Report) -> dict[str, Any]:
    """Return all of it as plain data."""

    def ratios(found: Compared) -> dict[str, dict[str, float]]:
        return {name: {"ratio": r.value, "error": r.error} for name, r in found.ratios.items()}

    return {
        "about": dict(report.about),
        "conclusion": report.conclusion,
        "op_backends": {op: order for op, order in report.orders.items() if op != LAYER_1},
        "layer_1": "off" if LAYER_1 in report.orders else "as it is",
        "ops": as_rows(report),
        "engines": {name: ratios(found) for name, found in report.engines.items()},
        "control": ratios(report.control) if report.control else {},
        "not_called": list(report.uncalled),
        "not_measured": list(report.unmeasured),
    }


def as_package_data(report: Report) -> str:
    """Return what was measured as a vendor package keeps it: entries of ``Vendor.choices``.

    An entry says whether an implementation runs by default in the place of SGLang's own path, so only what
    was measured beside that path has one. What is not exact is named: it belongs in the quarantine.
    """
    where = ", ".join(report.about[name] for name in ("model", "chip", "versions") if name in report.about)
    lines = ["choices = ("]
    for op, (impl, found) in report.beside_sglang.items():
        is_slower = any(ratio.is_slower for ratio in found.ratios.values())
        reason = f"{found} times the speed of SGLang's own in a served model ({where})"
        lines += _entry(op, impl, not is_slower, reason)
    lines.append(")")
    for verdict in report.verdicts:
        for impl, why in verdict.others.items():
            if why.startswith(("wrong", "raised", "hangs", "ends its process")):
                lines.append(f"# quarantine, once a reproduction is written: {verdict.op} {impl} {why}")
    return "\n".join(lines)


def _entry(op: str, impl: str, is_default: bool, reason: str) -> list[str]:
    first, *more = textwrap.wrap(reason, 88, drop_whitespace=False)
    texts = [f"reason={_quoted(first)}", *map(_quoted, more)]
    return [
        "    OpChoice(",
        f"        {_quoted(op)},",
        f"        {_quoted(impl)},",
        f"        is_default={is_default},",
        *(f"        {text}" for text in texts[:-1]),
        f"        {texts[-1]},",
        "    ),",
    ]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

"""What a run has found, as the files and tables that people keep."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang_fl.settings.policy import SGLANG
from sglang_fl.tune.aten_decide import KERNEL, PYTORCH
from sglang_fl.tune.decide import ATEN, Compared, OpVerdict
from sglang_fl.tune.sides import LAYER_1

__all__ = ["Report", "about_uncalled", "as_data", "as_package_data", "as_rows", "as_yaml"]

#: The lists of ATen ops in a file, of which at most one may stand there.
LISTS = ("flagos_whitelist", "flagos_blacklist")
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

    @property
    def listed(self) -> tuple[str, ...] | None:
        """The white list of ATen ops that is written; empty where layer 1 is off, None where all stays."""
        order = self.orders.get(LAYER_1)
        return order if order is None else tuple(name for name in order.split(",") if name != "0")

    def choice(self, op: str) -> str:
        """Return what an op runs on by this choice: an id, or ``sglang``; of an ATen op whose kernel."""
        if op.startswith(ATEN) and self.listed is not None:
            return KERNEL if op in self.listed else PYTORCH
        order = self.orders.get(op)
        if order is None:
            return next((verdict.present for verdict in self.verdicts if verdict.op == op), SGLANG)
        return order.partition("|")[0].removeprefix("impl:")

    def reason(self, verdict: OpVerdict) -> str:
        """Say why an op runs on what it does."""
        reason = self.reasons.get(verdict.op, verdict.reason)
        if verdict.best is None or self.choice(verdict.op) == verdict.best:
            return reason
        refusal = "the engine never called it" if verdict.is_aten and self.listed else NOT_CONFIRMED
        return f"{verdict.best} was proposed ({verdict.reason}), and {refusal}"


NOT_CONFIRMED = "the engine did not confirm it"


def as_yaml(report: Report) -> str:
    """Return the file for ``SGLANG_FL_CONFIG``."""
    lines = [*_head(report), ""]
    chosen = {op: order for op, order in report.orders.items() if op != LAYER_1}
    replaced = () if report.listed is None else (LAYER_1, *LISTS) if report.listed else (LAYER_1,)
    lines += [
        f"{key}: {json.dumps(value)}"
        for key, value in report.kept.items()
        if key != "op_backends" and key not in replaced
    ]
    lines += _layer_1(report)
    before = report.kept.get("op_backends") or {}
    orders = {**{op: order for op, order in before.items() if op not in chosen}, **chosen}
    if orders:
        lines.append("op_backends:")
    verdicts = {verdict.op: verdict for verdict in report.verdicts}
    for op, order in orders.items():
        if op in report.orders and op in verdicts:
            lines += _comment(_measurement(report, verdicts[op]), "  ")
        lines.append(f"  {op}: {json.dumps(order)}")
    back = [v for v in report.verdicts if v.is_aten and report.choice(v.op) != v.present == KERNEL]
    there = {*report.orders, *(report.listed or ()), *(verdict.op for verdict in back)}
    lines += _about("These are PyTorch's again:", report, back)
    lines += _about("These stay as they are:", report, [v for v in report.verdicts if v.op not in there])
    if report.uncalled:
        lines += ["", *_comment(about_uncalled(report), "")]
    return "\n".join(lines) + "\n"


def _layer_1(report: Report) -> Iterator[str]:
    """Write the list of ATen ops, each with its reason."""
    if report.listed is None:
        return
    yield f"{LAYER_1}: {json.dumps('1' if report.listed else '0')}"
    if not report.listed:
        return
    verdicts = {verdict.op: verdict for verdict in report.verdicts}
    yield f"{LISTS[0]}:"
    for name in report.listed:
        if name in verdicts:
            yield from _comment(_measurement(report, verdicts[name]), "  ")
        elif not name.startswith("!"):
            yield "  # replaced before, and no call of the model was recorded"
        yield f"  - {json.dumps(name)}"


def _about(title: str, report: Report, verdicts: Sequence[OpVerdict]) -> Iterator[str]:
    if verdicts:
        yield from ("", f"# {title}")
    for verdict in verdicts:
        yield from _comment(
            f"{verdict.op} on {report.choice(verdict.op)}: {_measurement(report, verdict)}", ""
        )


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
        "layer_1": "as it is" if report.listed is None else "listed" if report.listed else "off",
        "flagos_whitelist": list(report.listed or ()),
        "ops": as_rows(report),
        "engines": {name: ratios(found) for name, found in report.engines.items()},
        "control": ratios(report.control) if report.control else {},
        "not_called": list(report.uncalled),
        "not_measured": list(report.unmeasured),
    }


def as_package_data(report: Report) -> str:
    """Return what was measured as a vendor package keeps it: entries of its choices, of ops and of ATen ops.

    An entry says whether an implementation runs by default in the place of SGLang's own path, so only what
    was measured beside that path has one; an ATen op, beside PyTorch's own kernel. What is not exact is
    named: it belongs in the quarantine.
    """
    where = ", ".join(report.about[name] for name in ("model", "chip", "versions") if name in report.about)
    lines = ["choices = ("]
    for op, (impl, found) in report.beside_sglang.items():
        is_slower = any(ratio.is_slower for ratio in found.ratios.values())
        reason = f"{found} times the speed of SGLang's own in a served model ({where})"
        first = ("OpChoice(", f"{_quoted(op)},", f"{_quoted(impl)},", f"is_default={not is_slower},")
        lines += _entry(first, reason)
    lines.append(")")
    timed = [verdict for verdict in report.verdicts if verdict.kernel_gain is not None]
    lines += ["aten_choices = ("] if timed else []
    for verdict in timed:
        is_replaced = report.choice(verdict.op) == KERNEL
        names = f"({_quoted(verdict.op.removeprefix(ATEN))},),"
        reason = f"{report.reason(verdict)} ({where})"
        lines += _entry(("AtenChoice(", names, f"is_replaced={is_replaced},"), reason)
    lines += [")"] if timed else []
    for verdict in report.verdicts:
        for impl, why in verdict.others.items():
            if why.startswith(("wrong", "raised", "hangs", "ends its process")):
                lines.append(f"# quarantine, once a reproduction is written: {verdict.op} {impl} {why}")
    return "\n".join(lines)


def _entry(first: Sequence[str], reason: str) -> list[str]:
    """Return an entry of a vendor package: its first lines, and its reason."""
    head, *fields = first
    begin, *more = textwrap.wrap(reason, 88, drop_whitespace=False)
    texts = [f"reason={_quoted(begin)}", *map(_quoted, more)]
    inner = [*fields, *texts[:-1], f"{texts[-1]},"]
    return [f"    {head}", *(f"        {line}" for line in inner), "    ),"]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

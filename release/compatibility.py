"""Run the engine's tests against a release of SGLang and write down what came of it.

``python -m release.compatibility 0.5.17``; in the session ``compat``, whose environment imports that release.
Arguments after the release are pytest's. Writes ``docs/compatibility.json``, and from all that stands in it
``docs/compatibility.md`` and the table in the README.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

__all__ = ["in_readme", "main", "page", "read_outcomes", "summary"]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/compatibility.json"
PAGE = ROOT / "docs/compatibility.md"
README = ROOT / "README.md"
#: What stands around the table in the README.
MARKS = ("<!-- compatibility -->\n", "<!-- /compatibility -->")

Results = dict[str, dict[str, Any]]


def read_outcomes(report: Path) -> dict[str, Any]:
    """Read what became of each test from pytest's report in JUnit's form.

    Returns
    -------
    dict : ``files``, by test file how many passed, were skipped and failed; ``skipped``, how many by reason;
        ``failed``, their names
    """
    files: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    failed = []
    for test in ElementTree.parse(report).iter("testcase"):
        path = test.get("classname") or test.get("name") or ""
        outcome = "passed"
        if test.find("failure") is not None or test.find("error") is not None:
            outcome = "failed"
            failed.append(f"{path.rpartition('.')[2]}::{test.get('name')}")
        elif (skip := test.find("skipped")) is not None:
            outcome = "skipped"
            reasons[skip.get("message") or "no reason"] += 1
        files.setdefault(path.rpartition(".")[2], Counter())[outcome] += 1
    return {
        "files": {name: dict(sorted(counts.items())) for name, counts in sorted(files.items())},
        "skipped": dict(sorted(reasons.items())),
        "failed": sorted(failed),
    }


def summary(results: Results) -> str:
    """Return the table of the README: a row for each release."""
    if not results:
        return "No release was run to the end yet.\n"
    rows = ["| SGLang | passed | skipped | failed |", "|---|---|---|---|"]
    for release, result in results.items():
        total: Counter[str] = Counter()
        for counts in result["files"].values():
            total.update(counts)
        rows.append(f"| {release} | {total['passed']} | {total['skipped']} | {total['failed']} |")
    return "\n".join(rows) + "\n"


def page(results: Results) -> str:
    """Return the page: a row for each test file, what was skipped and why, what failed."""
    names = sorted({name for result in results.values() for name in result["files"]})
    head = f"| tests/engine | {' | '.join(results)} |\n|---|{'---|' * len(results)}\n"
    body = "".join(
        f"| `{name}` | {' | '.join(_cell(result['files'].get(name)) for result in results.values())} |\n"
        for name in names
    )
    rest = "".join(_rest(release, result) for release, result in results.items())
    return f"""# SGLang releases

Written by `nox -s compat`: the tests of SGLang's engine on the CPU, `tests/engine`, against a release of each
generation of its contract with plugins. Older releases run from their own wheel, with the transformers that
they pin, on top of the environment of the newest: its torch is newer than the one they were made for. The
layer classes, seams and platforms of *all* supported releases are held by `nox -s releases`.

{summary(results)}
{head}{body}{rest}"""


def _cell(counts: dict[str, int] | None) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in (counts or {}).items()) or "not run"


def _rest(release: str, result: dict[str, Any]) -> str:
    versions = f"torch {result['torch']}, transformers {result['transformers']}"
    lines = [f"\n## {release}\n\n{result['date']}, {versions}.\n"]
    lines += [f"- {count} skipped: {reason}\n" for reason, count in result["skipped"].items()]
    lines += [f"- **failed**: `{name}`\n" for name in result["failed"]]
    lines.insert(1, "\n" if len(lines) > 1 else "")
    return "".join(lines)


def in_readme(text: str, table: str) -> str:
    """Return the README with this table between its marks."""
    before, after = MARKS  # a table ends at an empty line
    pattern = re.escape(before) + ".*?" + re.escape(after)
    changed, count = re.subn(pattern, lambda _: f"{before}\n{table}\n{after}", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"README.md: there are not once the lines {before.strip()} and {after}")
    return changed


def _release_of(name: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", name)]


def write(release: str, outcomes: dict[str, Any]) -> None:
    """Put a release's outcomes beside those of the others, and write the pages."""
    results: Results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[release] = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        **outcomes,
    }
    results = {name: results[name] for name in sorted(results, key=_release_of)}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")
    README.write_text(in_readme(README.read_text(encoding="utf-8"), summary(results)), encoding="utf-8")


def main() -> int:
    """Run the tests; the exit status is pytest's. Nothing is written where a part of them was asked for."""
    release, *arguments = sys.argv[1:]
    if version("sglang") != release:
        raise SystemExit(f"this environment has SGLang {version('sglang')}, not {release}")
    report = ROOT / ".cache" / f"compatibility-{release}.xml"
    report.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pytest", "tests/engine", "-n", "2", "--dist", "loadfile"]
    options = ["--continue-on-collection-errors", f"--junitxml={report}"]
    done = subprocess.run([*command, *options, *arguments], cwd=ROOT, check=False)
    if not arguments and report.exists():
        write(release, read_outcomes(report))
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())

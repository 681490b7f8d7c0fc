"""Run the engine's tests against a release of SGLang and write down what came of it.

``python -m release.compatibility 0.5.17 [test_models test_verify]``; in the session ``compat``, whose
environment imports that release. Test files may be named, whose outcomes alone are written anew then, or
``--failed`` for the tests that failed. Writes ``docs/compatibility.json``, and from all that stands in it
``docs/compatibility.md``; ``nox -s tables`` takes its sums over into ``docs/features.md``.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

__all__ = ["main", "page", "read_outcomes", "summary"]

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests/engine"
RESULTS = ROOT / "docs/compatibility.json"
PAGE = ROOT / "docs/compatibility.md"

#: What became of a test file: how many passed, how many were skipped by reason, the names of what failed.
Outcomes = dict[str, Any]
#: For each release versions, and each file's outcomes with their date.
Results = dict[str, dict[str, Any]]


def read_outcomes(report: Path) -> dict[str, Outcomes]:
    """Read what became of the tests of each file from pytest's report in JUnit's form."""
    files: dict[str, Outcomes] = {}
    for test in ElementTree.parse(report).iter("testcase"):
        path = test.get("classname") or test.get("name") or ""
        name = path.rpartition(".")[2]
        outcomes = files.setdefault(name, {"passed": 0, "skipped": Counter(), "failed": []})
        if test.find("failure") is not None or test.find("error") is not None:
            outcomes["failed"].append(f"{name}::{test.get('name')}")
        elif (skip := test.find("skipped")) is not None:
            outcomes["skipped"][skip.get("message") or "no reason"] += 1
        else:
            outcomes["passed"] += 1
    return dict(sorted(files.items()))


def summary(results: Results) -> str:
    """Return a table with a row for each release."""
    if not results:
        return "No release was run to the end yet.\n"
    rows = ["| SGLang | passed | skipped | failed |", "|---|---|---|---|"]
    for release, result in results.items():
        passed, skipped, failed = map(sum, zip(*map(_counts, result["files"].values()), strict=True))
        rows.append(f"| {release} | {passed} | {skipped} | {failed} |")
    return "\n".join(rows) + "\n"


def _counts(outcomes: Outcomes) -> tuple[int, int, int]:
    return outcomes["passed"], sum(outcomes["skipped"].values()), len(outcomes["failed"])


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
layer classes, seams and platforms of *all* supported releases are held by `nox -s releases`. What failed may
have been run again alone (`-- --failed`), after it was mended.

{summary(results)}
{head}{body}{rest}"""


def _cell(outcomes: Outcomes | None) -> str:
    if outcomes is None:
        return "not run"
    counts = zip(_counts(outcomes), ("passed", "skipped", "failed"), strict=True)
    return ", ".join(f"{count} {what}" for count, what in counts if count)


def _rest(release: str, result: dict[str, Any]) -> str:
    dates = sorted({outcomes["date"] for outcomes in result["files"].values()})
    versions = f"torch {result['torch']}, transformers {result['transformers']}"
    lines = [f"\n## {release}\n\n{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, {versions}.\n"]
    reasons: Counter[str] = Counter()
    for outcomes in result["files"].values():
        reasons.update(outcomes["skipped"])
    lines += [f"- {count} skipped: {reason}\n" for reason, count in sorted(reasons.items())]
    lines += [
        f"- **failed**: `{name}`\n" for outcomes in result["files"].values() for name in outcomes["failed"]
    ]
    lines.insert(1, "\n" if len(lines) > 1 else "")
    return "".join(lines)


def _release_of(name: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", name)]


def after_failures(former: dict[str, Outcomes], again: dict[str, Outcomes]) -> dict[str, Outcomes]:
    """Return the outcomes of the files of which the failed tests were run again."""
    merged = {}
    for name, outcomes in again.items():
        passed = former[name]["passed"] + outcomes["passed"]
        skipped: Counter[str] = Counter(former[name]["skipped"]) + Counter(outcomes["skipped"])
        merged[name] = {"passed": passed, "skipped": skipped, "failed": outcomes["failed"]}
    return merged


def read_results() -> Results:
    """Return all that is written down so far."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def write(release: str, outcomes: dict[str, Outcomes], is_whole: bool = True) -> None:
    """Put a release's outcomes beside those of the others, and write the pages.

    Parameters
    ----------
    is_whole : the outcomes are those of all files; otherwise the other files keep theirs
    """
    results = read_results()
    today = datetime.now(timezone.utc).date().isoformat()
    files = {} if is_whole else results[release]["files"]
    files |= {name: {"date": today, **of_file} for name, of_file in outcomes.items()}
    results[release] = {
        "torch": version("torch"),
        "transformers": version("transformers"),
        "files": dict(sorted(files.items())),
    }
    results = {name: results[name] for name in sorted(results, key=_release_of)}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")


def run(release: str, tests: Sequence[str]) -> tuple[int, dict[str, Outcomes]]:
    """Run tests, by path or node id; return pytest's status and what became of them."""
    report = ROOT / ".cache" / f"compatibility-{release}.xml"
    report.parent.mkdir(exist_ok=True)
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", *tests, "-n", "2", "--dist", "loadfile"]
    options = ["--continue-on-collection-errors", f"--junitxml={report}"]
    done = subprocess.run([*command, *options], cwd=ROOT, check=False)
    return done.returncode, read_outcomes(report) if report.exists() else {}


def main() -> int:
    """Run the tests; the exit status is pytest's."""
    release, *names = sys.argv[1:]
    if version("sglang") != release:
        raise SystemExit(f"this environment has SGLang {version('sglang')}, not {release}")
    if names == ["--failed"]:
        former = read_results()[release]["files"]
        failed = [name for outcomes in former.values() for name in outcomes["failed"]]
        if not failed:
            raise SystemExit(f"no test failed on {release}")
        status, outcomes = run(release, [f"{TESTS}/{name.replace('::', '.py::', 1)}" for name in failed])
        write(release, after_failures(former, outcomes), is_whole=False)
        return status
    files = [TESTS / f"{name}.py" for name in names] or [TESTS]
    missing = [str(file.relative_to(ROOT)) for file in files if not file.exists()]
    if missing:
        raise SystemExit(f"there is no {', '.join(missing)}")
    status, outcomes = run(release, [str(file) for file in files])
    if outcomes:
        write(release, outcomes, is_whole=not names)
    return status


if __name__ == "__main__":
    raise SystemExit(main())

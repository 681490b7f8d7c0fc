"""What the session ``compat`` writes down: every test is counted, every skip has its reason on the page."""

import json
from pathlib import Path

import pytest

from release import compatibility
from release.compatibility import PAGE, RESULTS, page, read_outcomes, summary

REPORT = """<testsuites><testsuite>
<testcase classname="tests.engine.test_one" name="test_a"/>
<testcase classname="tests.engine.test_one" name="test_b[x]"><failure message="no"/></testcase>
<testcase classname="tests.engine.test_two" name="test_c"><skipped message="0.5.17 lacks it"/></testcase>
<testcase classname="" name="tests.engine.test_three"><error message="collection failure"/></testcase>
</testsuite></testsuites>
"""


@pytest.fixture
def results(tmp_path: Path) -> dict:
    (tmp_path / "report.xml").write_text(REPORT)
    outcomes = read_outcomes(tmp_path / "report.xml")
    files = {name: {"date": "2000-01-01", **of_file} for name, of_file in outcomes.items()}
    return {"0.5.17": {"torch": "3", "transformers": "6", "files": files}}


def test_each_test_is_counted_once(results):
    rows = page(results)
    assert "| `test_one` | 1 passed, 1 failed |\n" in rows
    assert "| `test_three` | 1 failed |\n" in rows
    assert "| `test_two` | 1 skipped |\n" in rows
    assert "| 0.5.17 | 1 | 1 | 2 |" in summary(results)


def test_what_failed_or_was_skipped_stands_on_the_page(results):
    text = page(results)
    assert "- 1 skipped: 0.5.17 lacks it\n" in text
    assert "- **failed**: `test_one::test_b[x]`\n" in text
    assert "- **failed**: `test_three::tests.engine.test_three`\n" in text


def test_files_that_are_run_again_replace_their_own_outcomes_alone(
    results: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("RESULTS", "PAGE"):
        monkeypatch.setattr(compatibility, name, tmp_path / name)
    (tmp_path / "RESULTS").write_text(json.dumps(results))
    compatibility.write("0.5.17", {"test_one": {"passed": 2, "skipped": {}, "failed": []}}, is_whole=False)
    text = (tmp_path / "PAGE").read_text()
    assert "| `test_one` | 2 passed |\n" in text
    assert "| `test_three` | 1 failed |\n" in text
    assert "\n2000-01-01 to 2" in text


def test_what_failed_and_was_run_again_is_counted_once(results: dict):
    again = {"test_one": {"passed": 1, "skipped": {}, "failed": []}}
    again["test_three"] = {"passed": 0, "skipped": {"no chip": 1}, "failed": []}
    merged = compatibility.after_failures(results["0.5.17"]["files"], again)
    assert merged == {
        "test_one": {"passed": 2, "skipped": {}, "failed": []},
        "test_three": {"passed": 0, "skipped": {"no chip": 1}, "failed": []},
    }


def test_the_page_is_made_from_the_results():
    results = json.loads(RESULTS.read_text())
    assert PAGE.read_text() == page(results)

"""What the session ``compat`` writes down: every test is counted, every skip has its reason on the page."""

import json
from pathlib import Path

import pytest

from release.compatibility import PAGE, README, RESULTS, in_readme, page, read_outcomes, summary

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
    return {"0.5.17": {"date": "2030-01-01", "torch": "3", "transformers": "6", **outcomes}}


def test_each_test_is_counted_once(results):
    assert results["0.5.17"]["files"] == {
        "test_one": {"failed": 1, "passed": 1},
        "test_three": {"failed": 1},
        "test_two": {"skipped": 1},
    }
    assert "| 0.5.17 | 1 | 1 | 2 |" in summary(results)


def test_what_failed_or_was_skipped_stands_on_the_page(results):
    text = page(results)
    assert "- 1 skipped: 0.5.17 lacks it\n" in text
    assert "- **failed**: `test_one::test_b[x]`\n" in text
    assert "- **failed**: `test_three::tests.engine.test_three`\n" in text


def test_a_readme_without_the_marks_is_refused():
    with pytest.raises(ValueError, match="there are not once the lines"):
        in_readme("# sglang-fl\n", "")


def test_page_and_readme_are_made_from_the_results():
    results = json.loads(RESULTS.read_text())
    assert PAGE.read_text() == page(results)
    assert in_readme(README.read_text(), summary(results)) == README.read_text()

"""The pages name the releases of SGLang that the table has."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

from release.supported import CONTAINERS, PAGES, ROOT, TABLE, releases_table, updated


@pytest.fixture
def table() -> dict:
    return runpy.run_path(str(TABLE))


@pytest.mark.parametrize("page", [*PAGES, *CONTAINERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_made_from_the_table(page: Path, table: dict):
    text = page.read_text()
    assert text == updated(text, table), "python3 -m release.supported"


def test_no_other_page_names_all_releases(table: dict):
    pages = {*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("packages/*/README.md")} - set(PAGES)
    assert [page.name for page in pages if table["supported_range"]() in page.read_text()] == []


@pytest.mark.parametrize("later", ["0.5.24", "0.6.0"])
def test_a_row_reaches_each_page(later: str, table: dict):
    # The functions of the table look into the dict in which they were defined.
    names = table["oldest"].__globals__
    names["RELEASES"] = (*names["RELEASES"], table["Release"](later, torch="2.15"))
    for page in PAGES:
        assert f"0.5.15 to {later}" in updated(page.read_text(), names)
    assert f"| {later} | 2.15 | `BaseFusedOp._resolve_forward_method` |\n" in releases_table(names)
    for file in CONTAINERS:
        assert f"ARG SGLANG={later}\n" in updated(file.read_text(), names)
    assert f"pip install sglang=={later} " in updated((ROOT / "docs/install.md").read_text(), names)


def test_the_weekly_run_tries_each_representative(table: dict):
    jobs = yaml.safe_load((ROOT / ".github/workflows/weekly.yml").read_text())["jobs"]
    sessions = jobs["versions"]["strategy"]["matrix"]["session"]
    tried = [match[1] for session in sessions if (match := re.fullmatch(r"compat\((.*)\)", session))]
    assert tried == table["representatives"]()[:-1]


def test_ci_makes_the_stack_anew_for_another_newest_release():
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["session"]["steps"]
    (cache,) = (step["with"] for step in steps if "actions/cache" in step.get("uses", ""))
    assert str(TABLE.relative_to(ROOT)) in cache["key"]

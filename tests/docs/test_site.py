"""What the site does to pages and docstrings before Sphinx reads them."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

breaks = pytest.importorskip("breaks")
docstrings = pytest.importorskip("docstrings")
outside = pytest.importorskip("outside")


def test_what_stands_behind_the_colon_of_an_item_is_its_description():
    lines = [
        "What it does.",
        "",
        "Parameters",
        "----------",
        "eps : added to the mean",
        "    square",
        "",
        "Text : x",
    ]
    described = list(docstrings.described(lines))
    assert described[4:7] == ["eps", "    added to the mean", "    square"]


def test_a_long_name_in_a_table_may_break_and_no_other():
    long, short = (f'<span class="pre">{name}</span>' for name in ("SGLANG_FL_KEEP_CALLS", "rms_norm"))
    may_break = "SGLANG_<wbr>FL_<wbr>KEEP_<wbr>CALLS"
    assert breaks.broken(f"<p>{long}</p><td>{long}{short}</td>") == (
        f'<p>{long}</p><td><span class="pre">{may_break}</span>{short}</td>'
    )


def test_links_of_a_file_are_those_of_the_page_that_shows_it():
    text = "[a](docs/stability.md#core-api) [b](SECURITY.md) [c](https://example.org/x) [d](#here)"
    rebased = outside.rebased(text, "CONTRIBUTING.md", "project/contributing")
    assert rebased == "[a](../stability.md#core-api) [b](security.md) [c](https://example.org/x) [d](#here)"


@pytest.mark.parametrize("page", outside.SHOWN)
def test_a_page_that_shows_files_is_a_stub_with_links_to_them(page: str):
    stub = ROOT / f"docs/{page}.md"
    assert stub.read_text().startswith("# ")
    for file in outside.SHOWN[page]:
        assert f"](../../{file})" in stub.read_text()
        assert (ROOT / file).read_text().partition("\n")[0].lstrip("# ") in outside.shown(
            page, stub.read_text()
        )

"""A translated page shows the commands of the English page, and it is known which ones are behind."""

from pathlib import Path

import pytest

from docs import translations
from docs.translations import DOCS, LANGUAGES, is_behind, original
from tests.docs.blocks import read_blocks

PAGES = [page for language in LANGUAGES for page in sorted(DOCS.glob(f"{language}/**/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_translation_shows_the_blocks_of_its_original(page: Path):
    if is_behind(page):
        pytest.skip(f"{page.name} is behind; on the site it says so")
    english = [(block.code, block.output) for block in read_blocks(original(page))]
    assert [block.code for block in read_blocks(page) if (block.code, block.output) not in english] == []


def test_a_page_is_behind_once_the_english_text_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(translations, "DOCS", tmp_path)
    (tmp_path / "zh").mkdir()
    english, page = tmp_path / "page.md", tmp_path / "zh/page.md"
    english.write_text("# Page\n")
    page.write_text("# 页\n\n<!-- translates: 0 -->\n")
    monkeypatch.setattr("sys.argv", ["translations"])
    assert translations.main() == 1
    assert capsys.readouterr().out.startswith("docs/zh/page.md is behind docs/page.md\n")
    monkeypatch.setattr("sys.argv", ["translations", "--confirm", str(page)])
    assert translations.main() == 0
    assert not is_behind(page)
    english.write_text("# Page\n\nmore\n")
    assert is_behind(page)


def test_a_translation_that_does_not_say_of_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(translations, "DOCS", tmp_path)
    (tmp_path / "zh").mkdir()
    (tmp_path / "zh/page.md").write_text("# 页\n")
    with pytest.raises(ValueError, match=r"page\.md: there must be one line <!-- translates: DIGEST -->"):
        is_behind(tmp_path / "zh/page.md")

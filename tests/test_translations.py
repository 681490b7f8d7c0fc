"""A translated page shows the commands of the English page, and it is known which ones are behind."""

from pathlib import Path

import pytest

from docs import translations
from docs.translations import is_behind, original, translated
from tests.docs.blocks import read_blocks


@pytest.mark.parametrize("page", translated(), ids=lambda page: page.name)
def test_a_translation_shows_the_blocks_of_its_original(page: Path):
    if is_behind(page):
        pytest.skip(f"{page.name} is behind; on the site it says so")
    here, there = (
        [(block.language, block.code, block.output) for block in read_blocks(path)]
        for path in (page, original(page))
    )
    assert here == there


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
    assert capsys.readouterr().out == ""
    assert not is_behind(page)
    english.write_text("# Page\n\nmore\n")
    assert is_behind(page)


def test_a_translation_that_does_not_say_of_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(translations, "DOCS", tmp_path)
    (tmp_path / "zh").mkdir()
    (tmp_path / "zh/page.md").write_text("# 页\n")
    with pytest.raises(ValueError, match=r"page\.md: there must be one line <!-- translates: DIGEST -->"):
        is_behind(tmp_path / "zh/page.md")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--confirm"], "--confirm: expected at least one argument"),
        (["--confrim", "zh/page.md"], "unrecognized arguments: --confrim"),
        (["--conf", "zh/page.md"], "unrecognized arguments: --conf"),
        (["--confirm", "page.md"], "'page.md' is no translated page. Valid: docs/zh/page.md."),
        (["--confirm", "zh/page.md", "zh/none.md"], "'zh/none.md' is no translated page."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistyped_confirmation_is_refused_and_confirms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, words, complaint: str
):
    monkeypatch.setattr(translations, "DOCS", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zh").mkdir()
    (tmp_path / "page.md").write_text("# Page\n")
    (tmp_path / "zh/page.md").write_text("# 页\n\n<!-- translates: 0 -->\n")
    monkeypatch.setattr("sys.argv", ["translations", *words])
    with pytest.raises(SystemExit, match="2"):
        translations.main()
    assert complaint in capsys.readouterr().err
    assert is_behind(tmp_path / "zh/page.md")

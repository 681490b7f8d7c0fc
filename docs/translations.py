"""Translated pages, and which of them are behind the English text; a Sphinx extension, too.

A page ``zh/install.md`` translates ``install.md`` and has a line ``<!-- translates: DIGEST -->``, the digest
of that text. ``python -m docs.translations`` names the pages that are behind; with ``--confirm PAGE``, once a
page was brought up to date, it writes the digest. On the site a page that is behind says so at its top.
"""

import argparse
import hashlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["DOCS", "LANGUAGES", "digest", "is_behind", "main", "original", "setup", "translated"]

DOCS = Path(__file__).parent
#: The folders of translated pages, and what such a page says when it is behind.
LANGUAGES = {"zh": "本页落后于英文原文；有出入时以[英文页]({page})为准。"}
_MARK = re.compile(r"<!-- translates: (\w+) -->")


def digest(page: Path) -> str:
    """Return what a translation says of the text that it translates."""
    return hashlib.sha256(page.read_bytes()).hexdigest()[:12]


def is_behind(page: Path) -> bool:
    """Whether the English text has changed since a page was translated.

    Raises
    ------
    ValueError : the page has not one line ``<!-- translates: DIGEST -->``
    """
    marks = _MARK.findall(page.read_text(encoding="utf-8"))
    if len(marks) != 1:
        raise ValueError(f"{page.name}: there must be one line <!-- translates: DIGEST -->")
    return bool(marks[0] != digest(original(page)))


def original(page: Path) -> Path:
    """Return the English page of a translated one, which has the same path without the language."""
    return DOCS / page.relative_to(DOCS / page.relative_to(DOCS).parts[0])


def translated() -> list[Path]:
    """Return the pages that translate another one."""
    return [page for language in LANGUAGES for page in sorted(DOCS.glob(f"{language}/**/*.md"))]


def main() -> int:
    """Name the pages that are behind, or confirm some; the exit status is 1 if there are."""
    parser = argparse.ArgumentParser(prog="python -m docs.translations", allow_abbrev=False)
    confirm = "write into these pages that they are up to date"
    parser.add_argument("--confirm", nargs="+", type=_page, metavar="PAGE", default=[], help=confirm)
    to_confirm: list[Path] = parser.parse_args().confirm
    for page in to_confirm:
        mark = f"<!-- translates: {digest(original(page))} -->"
        page.write_text(_MARK.sub(mark, page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0 if to_confirm else _tell_behind(translated())


def _page(name: str) -> Path:
    page = Path(name).resolve()
    if page not in translated():
        valid = ", ".join(f"docs/{page.relative_to(DOCS)}" for page in translated())
        raise argparse.ArgumentTypeError(f"{name!r} is no translated page. Valid: {valid}.")
    return page


def _tell_behind(pages: list[Path]) -> int:
    behind = [page for page in pages if is_behind(page)]
    for page in behind:
        sys.stdout.write(f"docs/{page.relative_to(DOCS)} is behind docs/{original(page).relative_to(DOCS)}\n")
    sys.stdout.write(f"{len(pages) - len(behind)} of {len(pages)} translated pages are up to date\n")
    return int(bool(behind))


def _read(app: "Sphinx", page: str, source: list[str]) -> None:
    language = page.partition("/")[0]
    path = DOCS / f"{page}.md"
    if language in LANGUAGES and is_behind(path):
        heading, _, rest = source[0].partition("\n")
        up = "../" * page.count("/")
        note = LANGUAGES[language].format(page=f"{up}{original(path).relative_to(DOCS)}")
        source[0] = f"{heading}\n\n> {note}\n{rest}"


def setup(app: "Sphinx") -> dict[str, bool]:
    """Register the extension."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    raise SystemExit(main())

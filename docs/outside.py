"""A Sphinx extension: files that lie outside ``docs/`` are pages of the site, too.

Such a page is a stub that links to them, which is all that a Git host needs; here the text of the files takes
its place. Links to these files, from any page, lead to the page.
"""

import os
import re
from pathlib import Path, PurePosixPath

from sphinx.application import Sphinx

__all__ = ["rebased", "setup", "shown"]

ROOT = Path(__file__).parents[1]
PACKAGES = ("core", "nvidia", "ascend", "mlu")
#: The files that a page shows, one after another.
SHOWN = {
    "project/contributing": ("CONTRIBUTING.md",),
    "project/code-of-conduct": ("CODE_OF_CONDUCT.md",),
    "project/security": ("SECURITY.md",),
    **{f"reference/package-{name}": (f"packages/sglang-fl-{name}/README.md",) for name in PACKAGES},
    "project/changelogs": tuple(f"packages/sglang-fl-{package}/CHANGELOG.md" for package in PACKAGES),
}
#: The page to which a link to one of the files leads.
_PAGE_OF = {file: page for page, files in SHOWN.items() for file in files}
_LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")


def shown(page: str, source: str) -> str:
    """Return the text of a page: that of the files that it shows under its heading, or its own."""
    files = SHOWN.get(page, ())
    if not files:
        return rebased(source, f"docs/{page}.md", page)
    texts = [rebased((ROOT / file).read_text(encoding="utf-8"), file, page) for file in files]
    if len(texts) == 1:
        return texts[0]
    heading = source.partition("\n")[0]
    return "\n\n".join([heading, *(re.sub(r"^#", "##", text, flags=re.MULTILINE) for text in texts)])


def rebased(text: str, file: str, page: str) -> str:
    """Return a file's text with its relative links as they are written on a page.

    Parameters
    ----------
    text : Markdown
    file : where it lies, from the root of the repository
    page : where it is shown, from ``docs/``, without ending
    """

    def link(match: re.Match[str]) -> str:
        path = os.path.normpath(PurePosixPath(file).parent / match[2])
        path = f"docs/{_PAGE_OF[path]}.md" if path in _PAGE_OF else path
        return f"{match[1]}{os.path.relpath(path, PurePosixPath('docs', page).parent)}{match[3]}"

    return _LINK.sub(link, text)


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = shown(page, source[0])
    for file in SHOWN.get(page, ()):
        app.env.note_dependency(str(ROOT / file))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}

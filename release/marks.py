"""Pages that are written between marks: ``<!-- NAME -->`` and ``<!-- /NAME -->``."""

import sys
from pathlib import Path

__all__ = ["COMMAND", "behind", "put", "renew", "write"]

DOCS = Path(__file__).parents[1] / "docs"
#: What writes pages.
COMMAND = "nox -s tables"


def put(text: str, blocks: dict[str, str], page: str) -> str:
    """Return a page with each block between its marks.

    Raises
    ------
    SystemExit : the marks of a block are not there, once
    """
    for mark, block in blocks.items():
        before, after = f"<!-- {mark} -->", f"<!-- /{mark} -->"
        head, _, rest = text.partition(f"{before}\n")
        _, _, tail = rest.partition(after)
        if (text.count(before), rest.count(after)) != (1, 1):
            raise SystemExit(f"{page}: there must be the lines {before} and {after}, each once")
        text = f"{head}{before}\n\n{block}\n{after}{tail}"  # a table ends at an empty line
    return text


def name(page: str) -> str:
    """Return where a page lies in the repository; pages are named as seen from ``docs``."""
    return f"docs/{page}".replace("docs/../", "")


def behind(page: str, blocks: dict[str, str]) -> str | None:
    """Say that a page does not hold these blocks, and what writes it; None if it does."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return None if put(text, blocks, name(page)) == text else f"{name(page)} is behind: run {COMMAND}"


def write(page: str, blocks: dict[str, str]) -> None:
    """Write a page anew."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (DOCS / page).write_text(put(text, blocks, name(page)), encoding="utf-8")


def renew(pages: dict[str, dict[str, str]], *, is_check: bool) -> int:
    """Write pages anew that are behind, or only name them; the exit status is 1 if it names any."""
    late = {page: line for page, blocks in pages.items() if (line := behind(page, blocks))}
    for page, line in late.items():
        if not is_check:
            write(page, pages[page])
        sys.stdout.write(f"{line if is_check else f'{name(page)} is written anew'}\n")
    return int(is_check and bool(late))

"""Write the tables of the pages about ops, vendors, features and commands from what the packages say.

``python -m release.tables`` writes what stands between the marks of each page. With ``--check`` it writes
nothing and names the pages that are behind. The column ``engine`` it takes as it is: the vendors' sessions
check that. The packages must be importable; of their libraries none is needed.
"""

import sys
from pathlib import Path

from release import cli_page, features_page, json_page, op_page, vendor_page

__all__ = ["COMMAND", "behind", "main", "put"]

DOCS = Path(__file__).parents[1] / "docs"
#: What writes the pages.
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


def behind(page: str, blocks: dict[str, str]) -> str | None:
    """Say that a page is not what the packages say, and what writes it; None if it is."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return None if put(text, blocks, f"docs/{page}") == text else f"docs/{page} is behind: run {COMMAND}"


def write(page: str, blocks: dict[str, str]) -> None:
    """Write a page anew."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (DOCS / page).write_text(put(text, blocks, f"docs/{page}"), encoding="utf-8")


def main() -> int:
    """Write the pages, or with ``--check`` name those that are behind; the exit status is 1 if there are."""
    is_check = sys.argv[1:] == ["--check"]
    pages = {"ops.md": op_page.blocks(), "reference/cli.md": cli_page.blocks()}
    pages["reference/json.md"] = json_page.blocks()
    pages["reference/api-references.md"] = op_page.references()
    engines = {}
    for vendor in vendor_page.VENDORS:
        page = f"{vendor}.md"
        text = (DOCS / page).read_text(encoding="utf-8")
        engines[vendor] = vendor_page.engine_cells(text) if is_check else vendor_page.served(vendor)
        pages[page] = vendor_page.blocks(vendor, engines[vendor])
    pages["features.md"] = features_page.blocks(engines)
    late = {page: line for page, blocks in pages.items() if (line := behind(page, blocks))}
    for page, line in late.items():
        if not is_check:
            write(page, pages[page])
        sys.stdout.write(f"{line if is_check else f'docs/{page} is written anew'}\n")
    return int(is_check and bool(late))


if __name__ == "__main__":
    raise SystemExit(main())

"""Write the tables of the pages about ops, vendors, features and commands from what the packages say.

Those of the pages about benchmarks too, from ``benchmarks/results``; ``python -m release.figures`` writes
these alone.

``python -m release.tables`` writes what stands between the marks of each page. With ``--check`` it writes
nothing and names the pages that are behind. The column ``engine`` it takes as it is: the vendors' sessions
check that. The packages must be importable; of their libraries none is needed.
"""

import sys

from release import cli_page, features_page, figures, json_page, op_page, vendor_page
from release.marks import DOCS, renew

__all__ = ["main"]


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
    return renew(pages | figures.pages(), is_check=is_check)


if __name__ == "__main__":
    raise SystemExit(main())

"""Write the supported releases of SGLang into the files that name them: ``python3 -m release.supported``.

The table of releases is run as a file, so that this works beside nox, where no package of ours is installed.
"""

import re
import runpy
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

__all__ = ["CONTAINERS", "PAGES", "main", "releases_table", "updated"]

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "packages/sglang-fl-core/src/sglang_fl/sglang_adapter/releases.py"
#: The pages of which a reader expects that they are about today's releases; runs and measurements are not.
PAGES = tuple(ROOT / page for page in ("README.md", "docs/install.md", "packages/sglang-fl-core/README.md"))
#: What images are built from; each has the newest release.
CONTAINERS = tuple(sorted((ROOT / "deploy").glob("Containerfile.*")))
#: What stands around the table of releases in docs/install.md.
MARKS = ("<!-- releases -->\n", "<!-- /releases -->\n")
_RANGE = re.compile(r"(?<=SGLang )(\(?)\d[\d.]* to \d[\d.]*\d")
_PINNED = re.compile(r"((?<=pip install sglang==)|(?<=ARG SGLANG=))[\d.]*\d")


def releases_table(table: dict[str, Any]) -> str:
    """Return a row for each group of releases with the same torch and the same seam of layer 2.

    Parameters
    ----------
    table : the names of the module of releases
    """
    rows = ["| SGLang | torch | layer 2 enters at |", "|---|---|---|"]
    for (torch, seam), found in groupby(table["RELEASES"], lambda release: _group(table, release)):
        group = [release.version for release in found]
        which = table["Range"](group[0], group[-1])
        rows.append(f"| {which} | {torch} | `{seam}` |")
    return "\n".join(rows) + "\n"


def _group(table: dict[str, Any], release: Any) -> tuple[str, str]:
    path = table["seam_path"](table["Version"](release.version))
    return release.torch, ".".join(path.split(".")[-2:])


def updated(text: str, table: dict[str, Any]) -> str:
    """Return a page with today's range, newest release and table of releases."""
    text = _RANGE.sub(lambda found: f"{found[1]}{table['supported_range']()}", text)
    text = _PINNED.sub(str(table["newest"]()), text)
    before, after = MARKS
    pattern = re.escape(before) + ".*?" + re.escape(after)
    return re.sub(pattern, lambda _: f"{before}\n{releases_table(table)}\n{after}", text, flags=re.DOTALL)


def main() -> None:
    """Write the files whose text changes, and print their names."""
    table = runpy.run_path(str(TABLE))
    for page in (*PAGES, *CONTAINERS):
        before = page.read_text(encoding="utf-8")
        text = updated(before, table)
        if text != before:
            page.write_text(text, encoding="utf-8")
            sys.stdout.write(f"{page.relative_to(ROOT)} is written anew\n")


if __name__ == "__main__":
    main()

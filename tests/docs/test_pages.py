"""What stands in the pages as commands, Python and settings works, and prints what the page says."""

import subprocess
from pathlib import Path

import pytest

from demo.server import ServerError
from tests.docs.blocks import read_blocks
from tests.docs.environment import ROOT, make_place
from tests.docs.running import Reader

pytestmark = pytest.mark.timeout(1800)

#: The scaffold's tests install and serve what it has written; a translation has the blocks of its original.
ELSEWHERE = ("docs/examples/", "docs/zh/")
FOUND = (*ROOT.glob("*.md"), *ROOT.glob("packages/*/README.md"), *ROOT.glob("docs/**/*.md"))
PAGES = sorted(
    page for page in FOUND if not str(page.relative_to(ROOT)).startswith(ELSEWHERE) and read_blocks(page)
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, tiny_model: Path, record_property):
    reader = Reader(tmp_path, make_place(tmp_path, tiny_model))
    failed = []
    try:
        for block in read_blocks(page):
            where = f"{page.relative_to(ROOT)}:{block.line}"
            record_property("block", f"{where}: {block.why_not or 'run'}")
            try:
                block.why_not or reader.run(block)
            except (AssertionError, subprocess.TimeoutExpired, ServerError) as error:
                failed.append(f"{where}: {error}")
    finally:
        reader.stop()
    assert not failed, "\n\n".join(failed)

"""The pages that are written from the packages are what the packages say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from release import features_page, marks, op_page, vendor_page
from release.marks import COMMAND, behind, put
from sglang_fl.ops import OPS

ROOT = Path(__file__).parents[1]


def test_no_page_is_behind():
    sources = os.pathsep.join(str(path) for path in ROOT.glob("packages/*/src"))
    command = [sys.executable, "-m", "release.tables", "--check"]
    environment = {**os.environ, "PYTHONPATH": sources}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert (answer.stdout, answer.returncode) == ("", 0), answer.stdout + answer.stderr


def test_a_page_that_is_behind_is_named_with_the_command_that_writes_it(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(marks, "DOCS", tmp_path)
    blocks = {"ops": "| op |\n"}
    page = tmp_path / "ops.md"
    page.write_text("before\n<!-- ops -->\nolder\n<!-- /ops -->\nafter\n")
    assert behind("ops.md", blocks) == f"docs/ops.md is behind: run {COMMAND}"
    page.write_text(put(page.read_text(), blocks, "docs/ops.md"))
    assert page.read_text() == "before\n<!-- ops -->\n\n| op |\n\n<!-- /ops -->\nafter\n"
    assert behind("ops.md", blocks) is None


@pytest.mark.parametrize("text", ["", "<!-- ops -->\n", 2 * "<!-- ops -->\n<!-- /ops -->\n"])
def test_marks_that_are_not_there_once_are_named(text: str):
    with pytest.raises(
        SystemExit, match=r"docs/x\.md: there must be the lines <!-- ops --> and <!-- /ops -->"
    ):
        put(text, {"ops": ""}, "docs/x.md")


def test_every_op_has_a_row_and_a_section():
    blocks = op_page.blocks()
    assert re.findall(r"^\| \[`(\w+)`\]", blocks["ops"], re.MULTILINE) == list(OPS)
    assert re.findall(r"^## (\w+)$", blocks["sections"], re.MULTILINE) == list(OPS)


@pytest.fixture(params=vendor_page.VENDORS)
def vendor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a vendor, whose package is importable."""
    monkeypatch.syspath_prepend(ROOT / f"packages/sglang-fl-{request.param}/src")
    return request.param


def test_an_op_that_a_vendor_says_nothing_about_has_a_row(vendor: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vendor_page, "OPS", dict.fromkeys([*OPS, "beam"]))
    assert (
        "| `beam` | none |  |  | nobody has looked for one yet |\n" in vendor_page.blocks(vendor, {})["ops"]
    )


@pytest.mark.parametrize(
    ("facts", "op"), [("LIMITS", "beam"), ("LIMITS", "relu2"), ("NO_KERNEL", "rms_norm")]
)
def test_a_fact_about_another_op_is_named(vendor: str, facts: str, op: str, monkeypatch: pytest.MonkeyPatch):
    known = vendor_page.blocks(vendor, {})
    assert known
    limits = sys.modules[f"sglang_fl_{vendor}.limits"]
    monkeypatch.setitem(getattr(limits, facts), op, "so")
    with pytest.raises(SystemExit, match=rf"sglang_fl_{vendor}/limits\.py: {facts}: {op} has"):
        vendor_page.blocks(vendor, {})


def test_the_engine_column_is_read_from_the_page(vendor: str):
    engine = {"rms_norm": "Qwen2, Gemma-3", "silu_and_mul": "Qwen2"}
    page = vendor_page.blocks(vendor, engine)["ops"]
    cells = vendor_page.engine_cells(page)
    assert {op: cell for op, cell in cells.items() if cell} == engine
    assert cells.keys() == OPS.keys()


def test_a_certificate_speaks_of_the_kernel_that_it_has_run(monkeypatch: pytest.MonkeyPatch):
    for package in ("nvidia", "ascend", "mlu"):
        monkeypatch.syspath_prepend(ROOT / f"packages/sglang-fl-{package}/src")
    rows = [{"impl": "flagos", "op": "relu2", "state": "passes", "target": "ours.relu2:relu2"}]
    certificates = [{"vendor": "nvidia", "implementations": rows}]
    row = "| [`silu_and_mul`](ops.md#silu_and_mul) | `flagos` declared;"
    assert row in features_page._ops({}, certificates)
    target = "sglang_fl_nvidia.flagos.silu_and_mul:silu_and_mul"
    rows[0] |= {"op": "silu_and_mul", "target": target}
    assert row.replace("declared", "**chip**") in features_page._ops({}, certificates)

"""The dashboard and the page of counters name every counter, and no other."""

import json
import re
from pathlib import Path

from sglang_fl.logs.counters import COUNTERS

DOCS = Path(__file__).parents[1] / "docs"
TOTALS = {f"{name}_total": labels for name, (labels, _) in COUNTERS.items()}


def test_each_panel_asks_for_a_counter_by_its_own_labels():
    panels = json.loads((DOCS / "grafana.json").read_text())["panels"]
    asked = {}
    for panel in panels:
        (target,) = panel["targets"]
        (name,) = re.findall(r"sglang_fl_\w+", target["expr"])
        asked[name] = tuple(re.search(r"by \(([^)]*)\)", target["expr"])[1].split(", "))
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) == {*asked[name]}
    assert asked == TOTALS


def test_the_page_tells_of_each_counter_with_its_labels():
    rows = re.findall(r"^\| `(sglang_fl_\w+)` \| (.*?) \|", (DOCS / "operate.md").read_text(), re.MULTILINE)
    assert {name: tuple(re.findall(r"\w+", labels)) for name, labels in rows} == TOTALS

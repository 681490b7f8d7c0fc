"""The schemas of ``docs/reference/schemas``, and what holds a command's output against one."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

__all__ = ["SCHEMAS", "assert_fits"]

ROOT = Path(__file__).parents[1]
#: By the names of their files.
SCHEMAS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.glob("docs/reference/schemas/*.json"))
}


def assert_fits(name: str, data: Any) -> None:
    """Fail with each place of the data that is not as the schema of this name says."""
    found = Draft202012Validator(SCHEMAS[name]).iter_errors(data)
    faults = [f"{fault.json_path}: {fault.message[:300]}" for fault in found]
    assert faults == [], f"docs/reference/schemas/{name}.json"

"""Every public name of core has an entry on the site."""

import importlib
from pathlib import Path

import pytest

inventory = pytest.importorskip("sphinx.util.inventory")

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "site/objects.inv"
PUBLIC = ("vendor", "ops", "errors", "conformance", "platform")


@pytest.mark.skipif(not BUILT.exists(), reason="the session docs builds the site first")
@pytest.mark.parametrize("module", PUBLIC)
def test_each_public_name_is_on_the_site(module: str):
    entries = inventory.InventoryFile.loads(BUILT.read_bytes(), uri="").data
    there = {name for kind, names in entries.items() if kind.startswith("py:") for name in names}
    public = importlib.import_module(f"sglang_fl.{module}")
    missing = [name for name in public.__all__ if not any(_is_entry(entry, module, name) for entry in there)]
    assert missing == []


def _is_entry(entry: str, module: str, name: str) -> bool:
    """Whether an entry is that of a name, in the public module or where it is defined inside of it."""
    return entry.startswith(f"sglang_fl.{module}.") and entry.endswith(f".{name}")

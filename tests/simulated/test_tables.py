"""The page of this session's vendor says what the package holds, and its lists what FlagGems knows."""

import ast
import importlib
import re
from pathlib import Path

import pytest
import yaml

from release.sglang_wheels import unpacked
from sglang_fl.aten.plan import make_plan, names_of_nothing, offered_ops
from sglang_fl.ops import OPS
from sglang_fl.settings import Settings
from tests.engine.models import FAMILIES

ROOT = Path(__file__).parents[2]
FLAG_GEMS = "5.0.2"
#: How a kernel names what it calls of its library.
CALLS = {"ascend": r"torch_npu\.(npu_\w+)\(", "mlu": r'\bfunction\(\s*"(\w+)"'}
PROOF = {"ascend": "schema, shapes, emulation", "mlu": "signature, emulation"}
#: What FlagGems calls them.
BACKENDS = {"ascend": "_ascend", "mlu": "_cambricon"}


@pytest.fixture(scope="module")
def tables(vendor) -> list[list[list[str]]]:
    """The page's tables: rows of cells."""
    text = (ROOT / f"docs/{vendor}.md").read_text()
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in b.splitlines()] for b in blocks
    ]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def library_calls(vendor, op: str) -> set[str]:
    """Return what a kernel calls, with what it takes from the files beside it."""
    folder = Path(importlib.import_module(f"sglang_fl_{vendor}").__file__).parent / "vendor"
    text = (folder / f"{op}.py").read_text()
    found = set(re.findall(CALLS[vendor.name], text))
    shared = [name for name in ("routing", "rotation") if f".vendor.{name} import" in text]
    return found.union(
        *(re.findall(CALLS[vendor.name], (folder / f"{name}.py").read_text()) for name in shared)
    )


def served(vendor) -> dict[str, set[str]]:
    """Return for each op the families that SGLang's engine runs on the vendor's kernel."""
    module = importlib.import_module(f"tests.simulated.test_{vendor}")
    ops = {family.name: family.runs for family in FAMILIES}
    found: dict[str, set[str]] = {op: set() for op in OPS}
    for setup in module.SETUPS:
        for layer_class, ran in setup.runs.items():
            if ran == module.VENDOR:
                found[ops[setup.family][layer_class]].add(setup.family)
    return found


def test_each_op_has_a_row_that_says_what_runs_it(vendor, tables):
    rows = {quoted(row[0])[0]: row for row in tables[0][2:]}
    native = {impl.op for impl in vendor.impls if impl.id == f"vendor.{vendor}"}
    assert rows.keys() == OPS.keys()
    families = served(vendor)
    for op, (_, calls, proof, engine, limits) in rows.items():
        if op in native:
            assert quoted(calls) == sorted(library_calls(vendor, op)), op
            assert proof == PROOF[vendor.name], op
            assert engine == ", ".join(sorted(families[op])), op
        else:
            assert (calls, proof, engine) == ("none", "", ""), op
            assert limits, op


def test_each_list_of_aten_ops_has_a_row_with_its_source(vendor, tables):
    expected = [
        (entry.names, f"in quarantine, {entry.library} {entry.versions}", entry.reason)
        for entry in vendor.aten.quarantine
    ]
    expected += [
        (choice.names, "replaced" if choice.is_replaced else "not replaced", choice.reason)
        for choice in vendor.aten.choices
    ]
    assert [(tuple(quoted(ops)), default, why) for ops, default, why in tables[1][2:]] == expected


@pytest.fixture
def flag_gems(monkeypatch: pytest.MonkeyPatch) -> Path:
    """FlagGems as its wheel has it, on the path and never imported."""
    folder = unpacked("flag_gems", FLAG_GEMS)
    monkeypatch.syspath_prepend(folder)
    return folder / "flag_gems/runtime/backend"


def test_every_name_in_the_lists_means_an_op_of_flag_gems(vendor, flag_gems):
    assert names_of_nothing(vendor) == ()


def test_what_flag_gems_itself_does_not_run_on_the_chip_is_not_run(vendor, flag_gems):
    folder = flag_gems / BACKENDS[vendor.name]
    (unused,) = re.findall(
        r"CUSTOMIZED_UNUSED_OPS = (\(.*?\))", (folder / "__init__.py").read_text(), re.DOTALL
    )
    names = set(ast.literal_eval(unused))
    if (folder / "op_black_list.yaml").exists():
        failed = yaml.safe_load((folder / "op_black_list.yaml").read_text())["unsupported_operators"]
        names |= {entry["name"] for entry in failed}
    offered = {op.name for op in offered_ops(vendor)}
    listed = {name for choice in vendor.aten.choices for name in choice.names}
    assert names & offered <= listed
    assert make_plan(Settings.read(vendor), vendor).replaced == ()

"""The page of this session's vendor says what the package holds, and its lists what FlagGems knows."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from release import vendor_page
from release.marks import behind
from release.sglang_wheels import unpacked
from sglang_fl.aten.plan import make_plan, names_of_nothing, offered_ops
from sglang_fl.settings import Settings

FLAG_GEMS = "5.0.2"
#: What FlagGems calls them.
BACKENDS = {"ascend": "_ascend", "mlu": "_cambricon"}


def test_the_page_says_what_the_package_holds_and_what_the_engine_ran(vendor):
    blocks = vendor_page.blocks(vendor.name, vendor_page.served(vendor.name))
    assert behind(f"{vendor}.md", blocks) is None


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

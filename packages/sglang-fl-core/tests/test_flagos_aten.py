"""FlagGems' ATen kernels: their names from its source, the functions from the library.

FlagGems needs a device to be imported, so a package of its shape stands in for it here; the table's forms
are those of FlagGems 5.0.2.
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sglang_fl.errors import VendorError
from sglang_fl.flagos import aten_ops
from sglang_fl.vendor import AtenOp, flag_gems_aten, flag_gems_aten_kernel, is_installed

TABLE = """
_FULL_CONFIG = (
    ("mul.Tensor", mul),
    # ("contiguous", contiguous),
    ("_softmax", softmax),
    (
        "_to_copy",
        to_copy,
        lambda: True,
    ),
    ("copy_", copy_, lambda: False),
    ("neg", neg),
)
"""
IMPORTABLE = """
import importlib
import types
from pathlib import Path

from flag_gems.ops import copy_, mul, neg, softmax, to_copy

config = types.SimpleNamespace(aten_patch_list=["neg"])
spec = importlib.util.spec_from_file_location("hopper.mul", Path(__file__).parent / "_hopper/ops/mul.py")
override = importlib.util.module_from_spec(spec)
spec.loader.exec_module(override)
mul = override.mul
"""


@pytest.fixture
def flag_gems(site: Path) -> Iterator[Path]:
    """The folder of a package ``flag_gems``."""
    folder = site / "flag_gems"
    (folder / "_hopper/ops").mkdir(parents=True)
    importlib.invalidate_caches()
    yield folder
    sys.modules.pop("sglang_fl.flagos.aten", None)


def test_names_are_read_without_an_import(flag_gems: Path):
    (flag_gems / "__init__.py").write_text(f"raise RuntimeError('No device were detected')\n{TABLE}")
    assert aten_ops.ops() == (
        AtenOp("mul.Tensor", "mul"),
        AtenOp("_softmax", "softmax"),
        AtenOp("_to_copy", "to_copy"),
        AtenOp("copy_", "copy_"),
        AtenOp("neg", "neg"),
    )
    assert "flag_gems" not in sys.modules


@pytest.mark.parametrize("source", ["", "_FULL_CONFIG = make()\n", "_FULL_CONFIG = ()\n"])
def test_table_that_cannot_be_read_is_an_error(flag_gems: Path, source: str):
    (flag_gems / "__init__.py").write_text(source)
    with pytest.raises(VendorError, match="has no table _FULL_CONFIG of ATen ops that can be read"):
        aten_ops.ops()


@pytest.mark.skipif(is_installed("flag_gems"), reason="needs an environment without FlagGems")
def test_flaggems_that_is_not_installed_is_an_error(site: Path):
    with pytest.raises(VendorError, match="flag_gems is not installed"):
        aten_ops.ops()
    assert "flag_gems" in flag_gems_aten().missing


def test_kernels_are_those_of_the_chip_that_apply_and_can_be_switched(flag_gems: Path):
    (flag_gems / "__init__.py").write_text(IMPORTABLE + TABLE)
    names = ("mul", "softmax", "to_copy", "copy_", "neg")
    (flag_gems / "ops.py").write_text("".join(f"def {name}(x):\n    return x\n\n" for name in names))
    (flag_gems / "_hopper/ops/mul.py").write_text("def mul(x):\n    return 'hopper'\n")
    kernels = importlib.import_module("sglang_fl.flagos.aten").kernels()
    assert [(kernel.overload, kernel.origin) for kernel in kernels] == [
        ("mul.Tensor", "flag_gems._hopper.ops.mul.mul"),
        ("_softmax", "flag_gems.ops.softmax"),
        ("_to_copy", "flag_gems.ops.to_copy"),
    ]
    assert kernels[0].function(1) == "hopper"
    assert flag_gems_aten_kernel("mul.Tensor") is flag_gems_aten_kernel("mul") is kernels[0].function
    with pytest.raises(VendorError, match="no ATen kernel 'neg' on this machine"):
        flag_gems_aten_kernel("neg")

"""The catalogues made from folders: what they list, what they import, and which files they refuse."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sglang_fl.ops
import sglang_fl.sglang_adapter.layers
from sglang_fl.ops import OPS, Op
from sglang_fl.ops.catalogue import Catalogue
from sglang_fl.sglang_adapter.layers import ADAPTERS, _adapters

NO_OPS = {"__init__", "catalogue", "compare", "op"}
NO_ADAPTERS = {"__init__", "adapter"}


def files(package: object) -> set[str]:
    return {path.stem for path in Path(package.__file__).parent.glob("*.py")}


def test_every_file_is_an_op_of_its_name_in_alphabetical_order():
    assert list(OPS) == sorted(files(sglang_fl.ops) - NO_OPS)
    assert [op.name for op in OPS.values()] == list(OPS)
    assert all(isinstance(op, Op) for op in OPS.values())


def test_every_file_of_layers_gives_all_of_its_adapters():
    listed = [adapter for adapters in ADAPTERS.values() for adapter in adapters]
    written = [
        adapter
        for name in sorted(files(sglang_fl.sglang_adapter.layers) - NO_ADAPTERS)
        for adapter in sys.modules[f"sglang_fl.sglang_adapter.layers.{name}"].ADAPTERS
    ]
    assert sorted(map(id, listed)) == sorted(map(id, written))


def run(code: str) -> str:
    command = [sys.executable, "-c", "import sys\n" + code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_public_modules_and_the_names_of_the_ops_come_without_torch():
    code = "from sglang_fl import errors, ops, vendor\n"
    code += "named = len(ops.OPS), sorted(ops.OPS) == list(ops.OPS), 'rms_norm' in ops.OPS, 'x' in ops.OPS\n"
    code += "vendor.flag_gems_impl('rms_norm')\n"
    code += "print(named, [m for m in sys.modules if m.startswith(('torch', 'numpy', 'sglang_fl.ops.'))])"
    assert run(code) == f"({len(OPS)}, True, True, False) ['sglang_fl.ops.catalogue']"


@pytest.mark.usefixtures("forked")
def test_an_op_is_imported_without_the_others():
    code = "from sglang_fl.ops import OPS\nOPS['relu2']\n"
    code += "print([m for m in OPS if f'sglang_fl.ops.{m}' in sys.modules])"
    assert run(code) == "['relu2']"


@pytest.mark.usefixtures("forked")
def test_the_classes_of_ops_are_found_by_every_way_of_importing_them():
    code = "from sglang_fl.ops import *\nimport sglang_fl.ops\nfrom sglang_fl.ops import relu2\n"
    code += "assert Op is sglang_fl.ops.Op is sglang_fl.ops.op.Op\nprint(relu2.__name__, Bound.__name__)"
    assert run(code) == "sglang_fl.ops.relu2 Bound"


def test_a_name_that_ops_does_not_have_is_refused():
    with pytest.raises(AttributeError, match=r"module 'sglang_fl\.ops' has no attribute 'Ops'"):
        sglang_fl.ops.Ops  # noqa: B018


def test_ops_cannot_be_changed():
    with pytest.raises(TypeError, match="does not support item assignment"):
        OPS["mine"] = OPS["rms_norm"]
    with pytest.raises(KeyError, match="mine"):
        OPS["mine"]


@pytest.fixture
def folder(site: Path) -> Callable[..., tuple[str, list[str]]]:
    """``folder(name, **sources)`` makes a package of these modules; returns its name and where it lies."""

    def make(name: str, **sources: str) -> tuple[str, list[str]]:
        path = site / name
        path.mkdir()
        (path / "__init__.py").touch()
        for module, source in sources.items():
            (path / f"{module}.py").write_text(source)
        return name, [str(path)]

    return make


def test_a_file_without_an_op_is_named_when_it_is_asked_for(folder):
    ops = Catalogue(*folder("ops_without", beam="", op="", compare="", catalogue=""))
    assert list(ops) == ["beam"]
    with pytest.raises(TypeError, match=r"ops_without/beam\.py: it defines no OP"):
        ops["beam"]


def test_an_op_of_another_name_than_its_file_is_named(folder):
    source = "from sglang_fl.ops import OPS\nOP = OPS['relu2']\n"
    ops = Catalogue(*folder("ops_misnamed", relu3=source))
    with pytest.raises(TypeError, match=r"ops_misnamed/relu3\.py: its OP is named 'relu2'"):
        ops["relu3"]


ADAPTER = """\
from sglang_fl.ops import OPS
from sglang_fl.sglang_adapter.layers.adapter import Adapter, bind_x
ADAPTERS = tuple(Adapter(f"models:{name}", OPS[op], bind_x) for name, op in %r)
"""


def test_adapters_of_one_class_keep_the_order_of_their_file(folder):
    source = ADAPTER % [("B", "relu2"), ("A", "relu2"), ("B", "new_gelu")]
    adapters = _adapters(*folder("layers_ordered", b=source, a=ADAPTER % [("C", "relu2")], adapter=""))
    assert list(adapters) == ["models:C", "models:B", "models:A"]
    assert [adapter.op.name for adapter in adapters["models:B"]] == ["relu2", "new_gelu"]


def test_a_file_without_adapters_is_named(folder):
    with pytest.raises(TypeError, match=r"layers_without/norm\.py: it defines no ADAPTERS"):
        _adapters(*folder("layers_without", norm="ADAPTER = None"))


def test_adapters_of_one_class_in_two_files_are_refused(folder):
    one, other = ADAPTER % [("Norm", "relu2")], ADAPTER % [("Norm", "new_gelu")]
    with pytest.raises(TypeError, match=r"layers_twice/b\.py: a\.py has an adapter of models:Norm too"):
        _adapters(*folder("layers_twice", a=one, b=other))

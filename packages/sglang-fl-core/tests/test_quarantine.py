"""Quarantine fails closed: what is not known to be free of a fault does not run."""

import importlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from sglang_fl.aten import make_plan
from sglang_fl.dispatch.resolution import resolve
from sglang_fl.ops import OPS
from sglang_fl.registry import Registry, is_in_force
from sglang_fl.settings import Settings
from sglang_fl.settings.policy import Policy
from sglang_fl.vendor import (
    AtenChoice,
    AtenOffer,
    AtenQuarantined,
    BackendKind,
    OpImpl,
    Quarantined,
    Vendor,
    is_installed,
)

FAULTY, RIGHT = "4.3", "4.5"
ENTRY = Quarantined("rms_norm", "flagos", "it returns zeros", "toy-kernels", ">=4.2,<4.4", "toy:proof")


def metadata(folder: Path, version: str | None, name: str = "toy_kernels-1.dist-info") -> Path:
    """Write a distribution's metadata; None leaves the version out."""
    info = folder / name
    info.mkdir(parents=True)
    line = "" if version is None else f"Version: {version}\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: toy-kernels\n{line}")
    importlib.invalidate_caches()
    return info


def module(folder: Path) -> None:
    (folder / "toy_kernels").mkdir(parents=True)
    (folder / "toy_kernels" / "__init__.py").write_text("raise AssertionError('imported')\n")
    importlib.invalidate_caches()


@pytest.mark.parametrize(
    ("version", "versions", "expected"),
    [
        ("4.2", ">=4.2,<4.4", True),
        ("4.3.1+cu12", ">=4.2,<4.4", True),
        ("4.3.dev7", ">=4.2,<4.4", True),
        ("4.3.dev7", "==4.3", True),
        ("4.3.dev7", "<4.2", False),
        ("0.0.0", ">=4.2,<4.4", True),
        ("4.4", ">=4.2,<4.4", False),
        ("4.1.9", ">=4.2,<4.4", False),
        ("4.1.9", "", True),
        ("unknown", ">=4.2", True),
        (None, ">=4.2", True),
    ],
)
@pytest.mark.parametrize("is_importable", [True, False])
def test_the_installed_version_decides(
    site: Path, version: str | None, versions: str, expected: bool, is_importable: bool
):
    metadata(site, version)
    if is_importable:
        module(site)
    entry = Quarantined("rms_norm", "flagos", "it returns zeros", "toy-kernels", versions, "toy:proof")
    assert is_in_force(entry) is expected


def test_a_library_that_is_not_installed_is_none_to_be_wary_of():
    assert not is_in_force(ENTRY)


def without_metadata(site: Path) -> None:
    module(site)


def namespace_package(site: Path) -> None:
    (site / "toy_kernels").mkdir()


def single_file(site: Path) -> None:
    (site / "toy_kernels.py").write_text("")


def loaded_without_a_spec(site: Path) -> None:
    sys.modules["toy_kernels"] = types.ModuleType("toy_kernels", str(site))
    sys.modules["toy_kernels"].__file__ = str(site / "toy_kernels.py")  # so that the test forgets it


def before_another_version(site: Path) -> None:
    module(site)
    metadata(site.parent / "later", RIGHT)
    sys.path.append(str(site.parent / "later"))


def metadata_without_a_file(site: Path) -> None:
    module(site)
    (site / "toy_kernels-4.5.dist-info").mkdir()


def metadata_in_no_encoding(site: Path) -> None:
    module(site)
    (metadata(site, RIGHT) / "METADATA").write_bytes(b"Name: toy-kernels\nVersion: \xff\xfe\n")


def two_versions(site: Path) -> None:
    module(site)
    metadata(site, RIGHT)
    metadata(site, FAULTY, "toy_kernels-4.3.dist-info")


UNKNOWN = (
    without_metadata,
    namespace_package,
    single_file,
    loaded_without_a_spec,
    before_another_version,
    metadata_without_a_file,
    metadata_in_no_encoding,
    two_versions,
)


@pytest.mark.parametrize("how", UNKNOWN)
def test_a_library_of_unknown_version_counts_as_faulty(
    site: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[[Path], None]
):
    monkeypatch.setattr(sys, "path", [*sys.path])
    how(site)
    importlib.invalidate_caches()
    assert is_installed("toy_kernels")
    assert is_in_force(ENTRY)


def test_an_editable_installation_says_its_version(site: Path, monkeypatch: pytest.MonkeyPatch):
    checkout = site.parent / "checkout"
    module(checkout)
    monkeypatch.syspath_prepend(checkout)
    info = metadata(site, RIGHT)
    assert is_in_force(ENTRY)
    (info / "direct_url.json").write_text(json.dumps({"url": "file:///x", "dir_info": {"editable": True}}))
    assert not is_in_force(ENTRY)


def test_neither_a_fused_op_nor_an_aten_op_runs_on_it(site: Path, write_module: Callable[[str], str]):
    module(site)
    ops = write_module("from sglang_fl.vendor import AtenOp\ndef ops(): return [AtenOp('mm', 'mm')]\n")
    aten = AtenQuarantined(("mm",), "it returns zeros", "toy-kernels", ">=4.2,<4.4", "toy:proof")
    vendor = Vendor(
        "toy",
        "cpu",
        1,
        "toy:probe",
        impls=(OpImpl("rms_norm", BackendKind.FLAGOS, "flagos", "toy:rms_norm", ("toy_kernels",)),),
        quarantine=(ENTRY,),
        aten=AtenOffer(
            f"{ops}:ops", "toy:kernels", choices=(AtenChoice(("mm",), True, "fast"),), quarantine=(aten,)
        ),
    )
    candidates = resolve(OPS["rms_norm"], Registry(vendor, ()), Policy()).candidates
    assert [impl.id for impl in candidates] == ["reference"]
    (decision,) = make_plan(Settings.read(vendor), vendor).decisions
    assert (decision.is_replaced, decision.reason[:13]) == (False, "in quarantine")

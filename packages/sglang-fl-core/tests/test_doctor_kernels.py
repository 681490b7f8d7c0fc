"""Doctor, where the ATen record is empty, where a CUDA path runs on another chip, and of sgl_kernel."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from doctor_rows import Doctor, only_problem
from sglang_fl.ops import OPS

Install = Callable[..., str]

CHIP = """
from sglang_fl.vendor import AtenChoice, AtenOffer, AtenOp, AtenQuarantined, BackendKind, OpImpl, Vendor

def ops():
    return [AtenOp("mul.Tensor", "mul"), AtenOp("cos", "cos")]

def kernels():
    raise AssertionError("doctor loaded me")

CHIP = Vendor(
    "toy", {device_type!r}, 1, "sglang_fl.registry.cpu:why_unavailable",
    impls=({impls}),
    aten=AtenOffer(
        __name__ + ":ops",
        __name__ + ":kernels",
        {requires},
        choices=(AtenChoice(("mul",), True, "fast"),),
        quarantine=({quarantine}),
    ),
    platform={platform},
)
"""

FLAG_GEMS = 'OpImpl("rms_norm", BackendKind.FLAGOS, "flagos", "k:f", ("flag_gems",)),'
SGL_KERNEL = 'OpImpl("rms_norm", BackendKind.VENDOR, "vendor.toy", "k:f", ("sgl_kernel",)),'
QUARANTINED = 'AtenQuarantined(("mul",), "it returns zeros", "pydantic", ">=1", "toy:proof"),'
SILU = 'OpImpl("silu_and_mul", BackendKind.VENDOR, "vendor.toy", "k:f"),'
PLAIN = {"device_type": "cpu", "impls": "", "requires": "()", "quarantine": "", "platform": "None"}
ALL_OPS = "".join(f'OpImpl("{op}", BackendKind.VENDOR, "vendor.toy", "k:f"),' for op in OPS)


@pytest.fixture
def chip(install: Install) -> Callable[..., str]:
    """Install the package of a chip with ATen kernels."""

    def install_chip(**parts: str) -> str:
        return install("toy", CHIP.format(**{**PLAIN, **parts}))

    return install_chip


RECORDED = {"SGLANG_FLAGGEMS_RECORD": "1", "SGLANG_FLAGGEMS_LOG_PATH": "/tmp/no-aten.log"}


def give(monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]) -> None:
    for name, text in settings.items():
        monkeypatch.setenv(name, text)


def test_layer_1_switched_off_is_found(doctor: Doctor, chip, monkeypatch):
    chip()
    give(monkeypatch, {**RECORDED, "USE_FLAGGEMS": "0"})
    row = only_problem(doctor("--only", "layer-1"), "layer 1")
    assert "USE_FLAGGEMS=0 switches layer 1" in row["text"]
    assert row["remedy"] == "set USE_FLAGGEMS=1"


def test_vendor_without_aten_kernels_is_found(doctor: Doctor, monkeypatch):
    give(monkeypatch, RECORDED)
    row = only_problem(doctor("--only", "layer-1"), "layer 1")
    assert "vendor cpu has no ATen kernels" in row["text"]
    assert "sglang-fl vendors" in row["remedy"]


def test_missing_kernel_library_is_found(doctor: Doctor, chip, monkeypatch):
    chip(requires='("no_such_gems",)')
    give(monkeypatch, {**RECORDED, "USE_FLAGGEMS": "1"})
    row = only_problem(doctor("--only", "layer-1"), "layer 1")
    assert "no_such_gems is not installed" in row["text"]
    assert row["remedy"] == "install no_such_gems into this Python"


@pytest.mark.parametrize(
    ("quarantine", "settings", "cause"),
    [
        ("", {"SGLANG_FL_FLAGOS_BLACKLIST": "mul"}, "SGLANG_FL_FLAGOS_BLACKLIST='mul' leaves none"),
        (QUARANTINED, {"SGLANG_FL_FLAGOS_WHITELIST": "mul"}, "SGLANG_FL_FLAGOS_WHITELIST='mul' leaves none"),
        (QUARANTINED, {}, "all are in quarantine"),
    ],
    ids=["black list", "white list", "no list"],
)
def test_list_that_leaves_no_op_is_found(doctor: Doctor, chip, monkeypatch, quarantine, settings, cause):
    chip(quarantine=quarantine)
    give(monkeypatch, settings)
    row = only_problem(doctor("--only", "layer-1"), "layer 1")
    assert f"no ATen op is replaced: {cause}" in row["text"].replace("the vendor's list names none, or ", "")
    assert "sglang-fl ops --aten" in row["remedy"]


def test_layer_1_that_replaces_ops_is_well(doctor: Doctor, chip):
    chip()
    assert doctor("--only", "layer-1")[1]["layer 1"]["text"] == "on: 1 of 2 ATen ops are replaced"


def test_recording_that_is_off_is_found(doctor: Doctor, chip, monkeypatch, tmp_path: Path):
    chip()
    assert doctor("--only", "aten-record")[1]["ATen record"]["remedy"].startswith("to record: USE_FLAGGEMS=1")
    monkeypatch.setenv("SGLANG_FLAGGEMS_LOG_PATH", str(tmp_path / "aten.log"))
    row = only_problem(doctor("--only", "aten-record"), "ATen record")
    assert row["remedy"] == "set SGLANG_FLAGGEMS_RECORD=1"


def test_record_that_cannot_be_written_is_found(doctor: Doctor, chip, monkeypatch):
    chip()
    give(monkeypatch, {**RECORDED, "SGLANG_FLAGGEMS_LOG_PATH": "/no/such/folder/aten.log"})
    row = only_problem(doctor("--only", "aten-record"), "ATen record")
    assert "No such file or directory" in row["text"]
    assert "writable folder" in row["remedy"]


@pytest.mark.parametrize(
    ("library", "seen", "remedy"),
    [
        (None, "not installed", "pip install flag-gems"),
        (
            "raise RuntimeError('No device were detected on your machine !')",
            "No device were detected",
            "driver",
        ),
        ("device = 'npu'", "works for the device 'npu', and the vendor's is 'cpu'", "GEMS_VENDOR"),
    ],
    ids=["missing", "without a device", "another device"],
)
def test_flag_gems_that_does_not_work_is_found(
    doctor: Doctor, chip, site: Path, monkeypatch, library: str | None, seen: str, remedy: str
):
    chip(impls=FLAG_GEMS)
    if library is not None:
        (site / "flag_gems.py").write_text(library)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    row = only_problem(doctor("--only", "flag-gems"), "FlagGems")
    assert seen in row["text"]
    assert remedy in row["remedy"]


def test_flag_gems_that_is_optional_and_missing_is_well(doctor: Doctor, chip, site: Path, monkeypatch):
    chip(impls=FLAG_GEMS)
    metadata = site / "sglang_fl_toy-0.0.1.dist-info" / "METADATA"
    optional = "Requires-Dist: flag-gems>=5; extra == 'flagos'\nProvides-Extra: flagos\n"
    metadata.write_text(metadata.read_text() + optional)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    code, rows = doctor("--only", "flag-gems")
    assert (code, rows["FlagGems"]["text"]) == (0, "not installed: an optional part of sglang-fl-toy")
    assert "sglang-fl-toy[flagos]" in rows["FlagGems"]["remedy"]
    monkeypatch.setenv("USE_FLAGGEMS", "1")
    assert doctor("--only", "flag-gems")[1]["FlagGems"]["state"] == "problem"


def test_flag_gems_that_works_is_well(doctor: Doctor, chip, site: Path, monkeypatch):
    chip(impls=FLAG_GEMS)
    (site / "flag_gems.py").write_text("device = 'cpu'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    assert doctor("--only", "flag-gems")[1]["FlagGems"]["text"] == "imports, for cpu"


def test_ops_without_a_kernel_on_another_chip_are_one_row(doctor: Doctor, chip):
    chip(device_type="npu", impls=FLAG_GEMS)
    code, rows = doctor("--only", "operators")
    assert (code, [*rows], rows["ops"]["state"]) == (0, ["ops"], "ok")
    text = f"{len(OPS)} ops without a kernel of toy: SGLang's own path for npu runs where it has one"
    assert rows["ops"]["text"].startswith(text)
    assert " rms_norm," in rows["ops"]["text"]
    assert rows["ops"]["remedy"] == "for the vendor's kernels install flag_gems"


def test_reference_that_runs_is_an_answer(doctor: Doctor, chip):
    chip(device_type="npu", impls=SILU, platform='"toy.Platform"')
    row = doctor("--only", "operators")[1]["ops"]
    assert row["state"] == "ok"
    assert row["text"].startswith(f"{len(OPS) - 1} ops without a kernel of toy: the reference runs (slow): ")
    assert "silu_and_mul" not in row["text"]


def test_op_left_to_sglang_on_another_chip_is_found(doctor: Doctor, chip, monkeypatch):
    chip(device_type="npu", impls=ALL_OPS)
    assert doctor("--only", "operators")[0] == 0
    monkeypatch.setenv("SGLANG_FL_OOT_BLACKLIST", "silu_and_mul")
    row = only_problem(doctor("--only", "operators"), "op silu_and_mul")
    assert "left to SGLang, whose path may be made for CUDA: SiluAndMul (" in row["text"]
    assert "SGLANG_FL_OOT_BLACKLIST names silu_and_mul" in row["text"]
    assert "off that list" in row["remedy"]
    monkeypatch.delenv("SGLANG_FL_OOT_BLACKLIST")
    monkeypatch.setenv("SGLANG_FL_OOT_ENABLED", "0")
    assert "unset" in only_problem(doctor("--only", "operators"), "ops")["remedy"]


def test_layer_classes_without_an_adapter_are_named_on_another_chip(doctor: Doctor, chip):
    chip(device_type="npu", impls=ALL_OPS)
    row = doctor("--only", "layer-classes")[1]["layer classes"]
    assert "XIELU" in row["text"]
    assert "SGLANG_FORCE_FUSED_OP_BACKEND=torch" in row["remedy"]


@pytest.fixture
def broken_sgl_kernel(site: Path, monkeypatch) -> None:
    """An sgl_kernel that is installed and cannot load its library, as the CUDA build on another chip."""
    (site / "sgl_kernel.py").write_text("raise ImportError('libcuda.so.1: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def test_sgl_kernel_that_nothing_needs_is_normal(doctor: Doctor, chip, broken_sgl_kernel):
    chip(device_type="npu", impls=FLAG_GEMS)
    code, rows = doctor("--only", "sgl-kernel")
    assert code == 0
    text = "not needed off CUDA, and nothing dispatched runs on it; its import: ImportError: libcuda.so.1"
    assert rows["sgl_kernel"]["text"].startswith(text)
    assert rows["sgl_kernel"]["remedy"].startswith("nothing to do")


def test_sgl_kernel_that_an_op_needs_is_found(doctor: Doctor, chip, broken_sgl_kernel):
    chip(impls=SGL_KERNEL)
    row = only_problem(doctor("--only", "sgl-kernel"), "sgl_kernel")
    assert "these ops would run on it: rms_norm" in row["text"]
    assert "SGLANG_FL_PER_OP='rms_norm=flagos|reference'" in row["remedy"]


def test_sgl_kernel_is_missed_on_cuda(doctor: Doctor, chip, broken_sgl_kernel):
    chip(device_type="cuda")
    assert "SGLang itself does on CUDA" in only_problem(doctor("--only", "sgl-kernel"), "sgl_kernel")["text"]


def test_sgl_kernel_that_sglangs_own_cpu_platform_needs_is_found(
    doctor: Doctor, broken_sgl_kernel, monkeypatch
):
    assert doctor("--only", "sgl-kernel")[0] == 0
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    row = only_problem(doctor("--only", "sgl-kernel"), "sgl_kernel")
    assert "SGLANG_USE_CPU_ENGINE=1" in row["text"]
    assert row["remedy"] == "unset SGLANG_USE_CPU_ENGINE, or install the build of sgl_kernel for CPUs"

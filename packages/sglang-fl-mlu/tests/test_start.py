"""A start with this package installed and something missing: one message, and the rest goes on."""

import json
import os
import subprocess
import sys

import pytest

from sglang_fl.conformance.simulated import SimulatedChip
from sglang_fl_mlu import MLU

#: What ``sglang-fl`` calls, without its tables.
REPORT = "import json; from sglang_fl.diagnostics import report; print(json.dumps(report.{}))"
WITHOUT_LIBRARY = SimulatedChip("mlu", "cncl", stand_ins={"torch_mlu": None})


def ask(question: str, **settings: str) -> subprocess.CompletedProcess[str]:
    ours = ("SGLANG_", "USE_FLAGGEMS")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [sys.executable, "-c", REPORT.format(question)],
        env={**clean, "CUDA_VISIBLE_DEVICES": "", **settings},
        capture_output=True,
        text=True,
    )


def rows(question: str, **settings: str) -> list[dict]:
    return json.loads(ask(question, **settings).stdout)


def test_without_a_chip_the_cpu_serves_and_the_reason_is_told():
    vendors = {row["vendor"]: row for row in rows("vendors()")}
    assert vendors["mlu"]["reason"] == "torch_mlu is not installed"
    assert {row["runs"] for row in rows("ops()")} == {"reference"}


def test_asking_for_the_chip_that_is_not_there_is_one_message():
    done = ask("ops()", SGLANG_FL_PLATFORM="mlu")
    assert done.stderr.splitlines()[-1] == (
        "sglang_fl.errors.SettingsError: SGLANG_FL_PLATFORM='mlu': that vendor is installed but not "
        "available: torch_mlu is not installed. Available: cpu."
    )


def test_on_the_simulated_chip_the_vendors_kernels_are_first():
    vendors = {row["vendor"]: row for row in rows("vendors()", SGLANG_FL_SIMULATED="mlu")}
    assert vendors["mlu"]["available"]
    run = {row["op"]: row["runs"] for row in rows("ops()", SGLANG_FL_SIMULATED="mlu")}
    native = {impl.op for impl in MLU.impls if impl.id == "vendor.mlu"}
    assert {op for op, ran in run.items() if ran == "vendor.mlu"} == native


def test_a_chip_that_no_package_simulates_is_one_message():
    done = ask("ops()", SGLANG_FL_SIMULATED="ascent")
    assert (
        "SGLANG_FL_SIMULATED='ascent': no installed vendor package offers that chip. Valid: mlu"
        in done.stderr
    )


@pytest.mark.on_chip(WITHOUT_LIBRARY)
def test_without_the_library_the_references_run_and_the_reason_is_told():
    from sglang_fl.diagnostics import report

    answer = report.why("rms_norm")
    assert [row["id"] for row in answer["candidates"]] == ["reference"]
    skipped = {row["what"]: row["reason"] for row in answer["not"]}
    assert skipped["vendor.mlu"] == "torch_mlu_ops is not installed"


@pytest.mark.on_chip(WITHOUT_LIBRARY)
def test_a_library_with_another_signature_is_replaced_by_the_reference_and_named():
    import types
    from unittest import mock

    from sglang_fl.errors import VendorError
    from sglang_fl.first_call import load_kernel
    from sglang_fl.ops import OPS

    def fused_rms_norm(x, gamma, eps):
        raise AssertionError

    library = types.ModuleType("torch_mlu_ops")
    library.fused_rms_norm, library.__version__ = fused_rms_norm, "2.0"
    (impl,) = (impl for impl in MLU.impls if (impl.op, impl.id) == ("rms_norm", "vendor.mlu"))
    with (
        mock.patch.dict(sys.modules, torch_mlu_ops=library),
        pytest.raises(VendorError, match=r"torch_mlu_ops.fused_rms_norm 2.0 takes \(x, gamma, eps\), sglang"),
    ):
        load_kernel(OPS["rms_norm"], impl)

"""A start with this session's vendor package and without its chip: one message, the rest goes on."""

import sys

import pytest

from sglang_fl.ops import OPS
from sglang_fl.ops.catalogue import PARTS
from tests.programs import Run, finish

#: What ``sglang-fl`` calls, without its tables.
REPORT = "import json; from sglang_fl.diagnostics import report; print('RESULT', json.dumps(report.{}))"
#: What the probe says where the vendor's package for PyTorch is missing.
ABSENT = {"mlu": "torch_mlu is not installed", "ascend": "torch_npu is not installed"}


@pytest.fixture
def ask(simulating):
    """``ask(question, chip, **settings)`` lets a process of its own answer."""

    def ask(question: str, chip: str = "", **settings: str) -> Run:
        return finish([sys.executable, "-c", REPORT.format(question)], simulating(chip, settings), 60)

    return ask


def test_without_a_chip_the_cpu_serves_and_the_reason_is_told(ask, vendor):
    vendors = {row["vendor"]: row for row in ask("vendors()").result}
    assert vendors[vendor.name]["reason"] == ABSENT[vendor.name]
    # What stands for several layers of SGLang is not tried where there is but a reference.
    wanted = {op: "sglang" if op in PARTS else "reference" for op in OPS}
    assert {row["op"]: row["runs"] for row in ask("ops()").result} == wanted


def test_asking_for_the_chip_that_is_not_there_is_one_message(ask, vendor):
    done = ask("ops()", SGLANG_FL_PLATFORM=vendor.name)
    assert done.output.splitlines()[-1] == (
        f"sglang_fl.errors.SettingsError: SGLANG_FL_PLATFORM={vendor.name!r}: that vendor is installed but "
        f"not available: {ABSENT[vendor.name]}. Available: cpu."
    )


def test_on_the_simulated_chip_the_vendors_kernels_are_first(ask, vendor):
    vendors = {row["vendor"]: row for row in ask("vendors()", vendor.name).result}
    assert vendors[vendor.name]["available"]
    run = {row["op"]: row["runs"] for row in ask("ops()", vendor.name).result}
    native = {impl.op for impl in vendor.impls if impl.id == f"vendor.{vendor}"}
    assert {op for op, ran in run.items() if ran == f"vendor.{vendor}"} == native


def test_a_chip_that_no_package_simulates_is_one_message(ask, vendor):
    sentence = "SGLANG_FL_SIMULATED='ascent': no installed vendor package offers that chip. Valid: "
    assert f"{sentence}{vendor}" in ask("ops()", "ascent").output

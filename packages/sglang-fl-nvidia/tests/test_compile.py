"""Triton's compiler takes each of our kernels, for a GPU that need not be there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_fl_nvidia import NVIDIA

PROGRAM = Path(__file__).with_name("compile_kernels.py")
OURS = [impl.op for impl in NVIDIA.impls if impl.target == f"sglang_fl_nvidia.flagos.{impl.op}:{impl.op}"]
#: In so many processes.
PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_kernels_compile_for_hopper(part: int):
    ops = OURS[part::PARTS]
    lines = compile_kernels(*ops)
    assert {line.split()[0] for line in lines} == set(ops)
    assert not [line for line in lines if "refused" in line]


def test_where_a_program_does_not_fit_the_op_is_refused():
    """So that its next candidate runs, on a GPU with less memory for a program than an H200 has."""
    first, *_ = compile_kernels("--shared", "20000", "chunk_gated_delta_rule")
    assert "refused: this GPU has too little for a program of it: out of resource: shared memory" in first


def compile_kernels(*words: str) -> list[str]:
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(PROGRAM), *words]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr[-4000:]
    return answer.stdout.splitlines()

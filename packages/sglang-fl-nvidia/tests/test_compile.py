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
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(PROGRAM), *ops]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr[-4000:]
    compiled = {line.split()[0] for line in answer.stdout.splitlines()}
    assert compiled == set(ops)

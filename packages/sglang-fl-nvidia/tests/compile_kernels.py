"""Compile the kernels of ops for a Hopper GPU that need not be there; launch nothing.

    python compile_kernels.py [--shared BYTES] OP...

Each op is called on the CPU with sample inputs in bfloat16, as on a GPU: the driver that Triton asks for the
chip is one that knows Hopper and runs nothing. What Triton's compiler refuses ends the program; its
interpreter, in which the other tests run, takes more than the compiler does. ``--shared``: what a program may
share, if less than on an H200; a call that needs more is refused, and told as such.
"""

import argparse
import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import OPS, Case, Op, lacking
from sglang_fl.vendor import load_target
from sglang_fl_nvidia.flagos import fused_moe, launch

#: What a program may share on an H200, in bytes, and its multiprocessors.
SHARED, MULTIPROCESSORS = 232448, 132


class Launcher:
    """Launches nothing."""

    def __init__(self, *_: Any) -> None:
        self.global_scratch_size = self.profile_scratch_size = 0

    def __call__(self, *_: Any) -> None:
        """See the class."""


class Driver:
    """As much of a driver as compiling asks for."""

    launcher_cls = Launcher
    utils = SimpleNamespace(
        load_binary=lambda *_: (0, 0, 0, 0, 1024),
        unload_module=lambda *_: None,
    )

    def get_current_target(self) -> GPUTarget:
        """Return Hopper."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """Return the first."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the default one."""
        return 0


def be_hopper(shared: int) -> None:
    """Have this process take the CPU's memory for that of a Hopper GPU."""
    Driver.utils.get_device_properties = lambda device: {"max_shared_mem": shared}
    triton.runtime.driver.set_active(Driver())
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(
        multi_processor_count=MULTIPROCESSORS
    )
    torch.cuda.device = lambda device: contextlib.nullcontext()
    launch._device_of = lambda arguments: 0
    launch._stream_of = lambda device: 0
    # Of the tiles of experts these have all that the others have, and compile fastest.
    tiles = {32: fused_moe.sorted_tiles(0)[32]}
    fused_moe.sorted_tiles = lambda inner: tiles
    fused_moe.rows_for = lambda assignments, experts: 32


def cases_of(op: Op) -> Iterator[Case]:
    """Yield the first case, and each one that has an argument, or a dtype of one, that none before has."""
    known: set[tuple[str, object]] = set()
    for case in op.cases:
        arguments = case.arguments(torch.bfloat16)
        found = {(name, getattr(value, "dtype", None)) for name, value in arguments.items()}
        if not known or found - known:
            known |= found
            yield case


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=int, default=SHARED)
    parser.add_argument("ops", nargs="+")
    options = parser.parse_args()
    be_hopper(options.shared)
    for name in options.ops:
        kernel = load_target(f"sglang_fl_nvidia.flagos.{name}:{name}")
        for case in cases_of(OPS[name]):
            arguments = case.arguments(torch.bfloat16)
            if lacking(kernel, arguments):
                continue
            try:
                kernel(**arguments)
            except UnsupportedError as error:
                print(f"{name} {case} refused: {error}", flush=True)
            else:
                print(name, case, flush=True)


if __name__ == "__main__":
    main()

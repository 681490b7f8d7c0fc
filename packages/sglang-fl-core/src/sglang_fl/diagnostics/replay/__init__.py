"""``sglang-fl replay``: kept calls of kernels, each run again in a process of its own."""

from sglang_fl.diagnostics.replay.command import replay

__all__ = ["replay"]

"""Kernels of SGLang's own that are known to be wrong, and in which releases.

They run on paths past the layers. ``shortcut_hooks`` turns such a path off in these releases, so that the
layers run instead; ``sglang-fl coverage`` and ``doctor`` name it.
"""

from dataclasses import dataclass

from packaging.version import Version

from sglang_fl.sglang_adapter.releases import Range

__all__ = ["KERNEL_FAULTS", "KernelFault", "faults_in", "why_wrong"]


@dataclass(frozen=True)
class KernelFault:
    """A kernel of SGLang's that computes something wrong.

    Parameters
    ----------
    shortcut : the name of the path that runs it
    target : the function that takes the path, as in ``SHORTCUTS``
    releases : those that have the fault
    what : what is wrong, as the end of a sentence that begins with the name
    source : where it is in SGLang, what was measured, and since when it is right
    """

    shortcut: str
    target: str
    releases: Range
    what: str
    source: str


KERNEL_FAULTS: tuple[KernelFault, ...] = (
    KernelFault(
        "fused_qk_norm_rope_gate",
        "sglang.srt.models.qwen3_5.Qwen3_5AttentionDecoderLayer.forward_prepare_cuda_fused",
        Range(last="0.5.18"),
        "rotates pictures by the time axis alone: it reads one row of the three rows of positions",
        "fused_qk_rmsnorm_rope_gate.py takes mrope_axis_map from 0.5.19 on. In Triton's interpreter, in "
        "bfloat16, the kernel before that is 16.1 away from a rotation by three axes; that of 0.5.19 is one "
        "rounding, 0.125, away.",
    ),
)


def faults_in(version: Version) -> list[KernelFault]:
    """Return the faults of a release."""
    return [fault for fault in KERNEL_FAULTS if version in fault.releases]


def why_wrong(target: str, version: Version) -> str | None:
    """Return what is wrong with the path that a function of a release takes, or None."""
    return next((fault.what for fault in faults_in(version) if fault.target == target), None)

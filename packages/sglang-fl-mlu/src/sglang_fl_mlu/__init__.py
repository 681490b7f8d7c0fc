"""Cambricon MLUs for sglang-fl: FlagGems' Triton kernels."""

from sglang_fl.vendor import Vendor, flag_gems_impl
from sglang_fl_mlu._version import __version__

__all__ = ["MLU", "__version__"]

MLU = Vendor(
    "mlu",
    device_type="mlu",
    core_api=1,
    probe="sglang_fl_mlu.probe:why_unavailable",
    platform="sglang_fl_mlu.platform.MluPlatform",
    impls=(
        flag_gems_impl("silu_and_mul"),
        flag_gems_impl("gelu_and_mul"),
        flag_gems_impl("new_gelu"),
        flag_gems_impl("rms_norm"),
        flag_gems_impl("rotary_embedding"),
    ),
)

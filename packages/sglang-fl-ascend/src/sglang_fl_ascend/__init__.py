"""Huawei Ascend NPUs for sglang-fl: FlagGems' Triton kernels."""

from sglang_fl.vendor import Vendor, flag_gems_aten, flag_gems_impl
from sglang_fl_ascend._version import __version__

__all__ = ["ASCEND", "__version__"]

ASCEND = Vendor(
    "ascend",
    device_type="npu",
    core_api=1,
    probe="sglang_fl_ascend.probe:why_unavailable",
    impls=(
        flag_gems_impl("silu_and_mul"),
        flag_gems_impl("gelu_and_mul"),
        flag_gems_impl("new_gelu"),
        flag_gems_impl("rms_norm"),
        flag_gems_impl("rotary_embedding"),
    ),
    # FlagGems 5.0.2 leaves rows past 65535 of a fused add and norm unwritten here, and its rotary
    # embedding needs memory that grows with the square of the tokens: a user must ask for them.
    defaults={"prefer": "reference"},
    aten=flag_gems_aten(),
    environment={"GEMS_VENDOR": "ascend"},
)

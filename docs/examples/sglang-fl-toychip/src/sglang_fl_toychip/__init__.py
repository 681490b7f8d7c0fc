"""toychip chips for sglang-fl."""

from sglang_fl.vendor import BackendKind, OpImpl, Vendor
from sglang_fl_toychip._version import __version__

__all__ = ["TOYCHIP", "__version__"]

TOYCHIP = Vendor(
    "toychip",
    device_type="toychip",
    core_api=1,
    probe="sglang_fl_toychip.probe:why_unavailable",
    impls=(
        OpImpl(
            "silu_and_mul",
            BackendKind.VENDOR,
            "vendor.toychip",
            "sglang_fl_toychip.vendor.silu_and_mul:silu_and_mul",
        ),
    ),
    platform="sglang_fl_toychip.platform.ToychipPlatform",
)

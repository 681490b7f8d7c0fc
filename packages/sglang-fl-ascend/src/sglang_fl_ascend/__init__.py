"""Huawei Ascend NPUs for sglang-fl: FlagGems' Triton kernels and the operators of ``torch_npu``."""

from sglang_fl.vendor import BackendKind, OpImpl, Vendor, flag_gems_aten, flag_gems_impl
from sglang_fl_ascend import aten
from sglang_fl_ascend._version import __version__
from sglang_fl_ascend.quarantine import QUARANTINE

__all__ = ["ASCEND", "__version__"]


def _vendor_impl(op: str) -> OpImpl:
    target = f"sglang_fl_ascend.vendor.{op}:{op}"
    return OpImpl(op, BackendKind.VENDOR, "vendor.ascend", target, requires=("torch_npu",))


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
        _vendor_impl("silu_and_mul"),
        _vendor_impl("gelu_and_mul"),
        _vendor_impl("new_gelu"),
        _vendor_impl("quick_gelu"),
        _vendor_impl("rms_norm"),
        _vendor_impl("gemma_rms_norm"),
        _vendor_impl("layer_norm"),
        _vendor_impl("rotary_embedding"),
        _vendor_impl("mrope"),
        _vendor_impl("topk_softmax"),
        _vendor_impl("topk_sigmoid"),
        _vendor_impl("fused_moe"),
        _vendor_impl("decode_attention"),
        _vendor_impl("extend_attention"),
    ),
    quarantine=QUARANTINE,
    defaults={"prefer": "vendor"},
    aten=flag_gems_aten(aten.CHOICES, aten.QUARANTINE),
    environment={"GEMS_VENDOR": "ascend"},
)

"""Cambricon MLUs for sglang-fl: FlagGems' Triton kernels and those of ``torch_mlu_ops``."""

from sglang_fl.vendor import BackendKind, OpImpl, Vendor, flag_gems_aten, flag_gems_impl
from sglang_fl_mlu import aten
from sglang_fl_mlu._version import __version__

__all__ = ["MLU", "__version__"]


def _vendor_impl(op: str) -> OpImpl:
    target = f"sglang_fl_mlu.vendor.{op}:{op}"
    return OpImpl(op, BackendKind.VENDOR, "vendor.mlu", target, requires=("torch_mlu_ops",))


# No gemma_rms_norm: the library takes no 1 + weight in float32, and rounding it first costs more than the
# contract allows.
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
        _vendor_impl("silu_and_mul"),
        _vendor_impl("gelu_and_mul"),
        _vendor_impl("quick_gelu"),
        _vendor_impl("rms_norm"),
        _vendor_impl("layer_norm"),
        _vendor_impl("rotary_embedding"),
        _vendor_impl("topk_softmax"),
        _vendor_impl("topk_sigmoid"),
        _vendor_impl("fused_moe"),
        _vendor_impl("decode_attention"),
        _vendor_impl("extend_attention"),
    ),
    aten=flag_gems_aten(aten.CHOICES, aten.QUARANTINE),
    environment={"GEMS_VENDOR": "cambricon"},
)

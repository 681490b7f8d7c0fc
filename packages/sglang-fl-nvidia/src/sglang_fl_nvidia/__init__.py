"""NVIDIA GPUs for sglang-fl: FlagGems' Triton kernels and SGLang's own CUDA kernels."""

from sglang_fl.vendor import BackendKind, OpImpl, Vendor, flag_gems_aten, flag_gems_impl
from sglang_fl_nvidia._version import __version__

__all__ = ["NVIDIA", "__version__"]


def _vendor_impl(op: str, *requires: str) -> OpImpl:
    target = f"sglang_fl_nvidia.vendor.{op}:{op}"
    return OpImpl(op, BackendKind.VENDOR, "vendor.nvidia", target, requires=requires)


NVIDIA = Vendor(
    "nvidia",
    device_type="cuda",
    core_api=1,
    probe="sglang_fl_nvidia.probe:why_unavailable",
    impls=(
        flag_gems_impl("silu_and_mul"),
        flag_gems_impl("gelu_and_mul"),
        flag_gems_impl("new_gelu"),
        flag_gems_impl("rms_norm"),
        flag_gems_impl("layer_norm"),
        flag_gems_impl("rotary_embedding"),
        flag_gems_impl("topk_softmax"),
        flag_gems_impl("fused_moe"),
        _vendor_impl("silu_and_mul", "sgl_kernel"),
        _vendor_impl("gelu_and_mul", "sgl_kernel"),
        _vendor_impl("rms_norm", "sgl_kernel"),
        _vendor_impl("gemma_rms_norm", "sgl_kernel"),
        _vendor_impl("rotary_embedding", "flashinfer"),
    ),
    aten=flag_gems_aten(),
    environment={"GEMS_VENDOR": "nvidia"},
)

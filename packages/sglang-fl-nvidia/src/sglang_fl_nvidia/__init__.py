"""NVIDIA GPUs for sglang-fl: Triton kernels of our own, FlagGems', and SGLang's own CUDA kernels."""

from sglang_fl.vendor import BackendKind, OpChoice, OpImpl, Vendor, flag_gems_aten, flag_gems_impl
from sglang_fl_nvidia._version import __version__
from sglang_fl_nvidia.aten import measured_choices
from sglang_fl_nvidia.aten_quarantine import QUARANTINE as ATEN_QUARANTINE
from sglang_fl_nvidia.quarantine import QUARANTINE

__all__ = ["NVIDIA", "__version__"]


def _own_impl(op: str) -> OpImpl:
    return OpImpl(
        op, BackendKind.FLAGOS, "flagos", f"sglang_fl_nvidia.flagos.{op}:{op}", requires=("triton",)
    )


def _flag_gems_too(op: str) -> OpImpl:
    return flag_gems_impl(op, "flagos.flag_gems")


def _not_default(op: str, reason: str) -> OpChoice:
    return OpChoice(op, "flagos", is_default=False, reason=reason)


def _vendor_impl(op: str, *requires: str) -> OpImpl:
    target = f"sglang_fl_nvidia.vendor.{op}:{op}"
    return OpImpl(op, BackendKind.VENDOR, "vendor.nvidia", target, requires=requires)


NVIDIA = Vendor(
    "nvidia",
    device_type="cuda",
    core_api=1,
    probe="sglang_fl_nvidia.probe:why_unavailable",
    impls=(
        _own_impl("silu_and_mul"),
        _own_impl("gelu_and_mul"),
        _own_impl("rms_norm"),
        _own_impl("gemma_rms_norm"),
        _own_impl("layer_norm"),
        _own_impl("rotary_embedding"),
        _own_impl("mrope"),
        _own_impl("qk_norm_rope"),
        _own_impl("topk_softmax"),
        _own_impl("topk_sigmoid"),
        _own_impl("fused_moe"),
        _own_impl("causal_conv1d_fn"),
        _own_impl("causal_conv1d_update"),
        _own_impl("fused_recurrent_gated_delta_rule_packed_decode"),
        _own_impl("fused_sigmoid_gating_delta_rule_update"),
        _own_impl("chunk_gated_delta_rule"),
        _own_impl("decode_attention"),
        _own_impl("extend_attention"),
        _own_impl("kv_cache_write"),
        _flag_gems_too("silu_and_mul"),
        _flag_gems_too("gelu_and_mul"),
        _flag_gems_too("rms_norm"),
        _flag_gems_too("layer_norm"),
        _flag_gems_too("rotary_embedding"),
        _flag_gems_too("topk_softmax"),
        _flag_gems_too("fused_moe"),
        flag_gems_impl("new_gelu"),
        _vendor_impl("silu_and_mul", "sgl_kernel"),
        _vendor_impl("gelu_and_mul", "sgl_kernel"),
        _vendor_impl("rms_norm", "sgl_kernel"),
        _vendor_impl("gemma_rms_norm", "sgl_kernel"),
        _vendor_impl("rotary_embedding", "flashinfer"),
    ),
    choices=(
        OpChoice(
            "fused_moe",
            "flagos",
            is_default=True,
            reason="1.04 to 1.74 of vanilla in served models, at one request 1.08 to 1.33, with the other "
            "defaults (Qwen3-30B-A3B, DeepSeek-V2-Lite, GLM-4.5-Air and gpt-oss-20b with 8 to 27 layers, "
            "bfloat16, SGLang 0.5.23, triton 3.6, H200)",
        ),
        OpChoice(
            "fused_moe",
            "flagos.flag_gems",
            is_default=False,
            reason="0.92 to 0.98 of the speed of SGLang's own in a served model (Qwen3-30B-A3B with 10 and "
            "16 layers, bfloat16, SGLang 0.5.23, FlagGems 5.0.2, triton 3.6, H200)",
        ),
        OpChoice(
            "qk_norm_rope",
            "flagos",
            is_default=True,
            reason="1.00 to 1.02 of the speed without it in a served model (Qwen3-30B-A3B with 10 layers, "
            "bfloat16, SGLang 0.5.23, triton 3.6, H200)",
        ),
        OpChoice(
            "causal_conv1d_fn",
            "flagos",
            is_default=True,
            reason="1.34 to 1.50 of the speed of SGLang's Triton kernel alone, 1.00 to 1.03 of the speed "
            "without it in prompts of a served model (Qwen3-Next with 24 layers of 128 experts, bfloat16, "
            "SGLang 0.5.23, triton 3.6, H200)",
        ),
        OpChoice(
            "causal_conv1d_update",
            "flagos",
            is_default=True,
            reason="1.30 to 1.57 of the speed of SGLang's Triton kernel alone, 1.00 to 1.01 of the speed "
            "without it in a served model (Qwen3-Next with 24 layers of 128 experts, bfloat16, SGLang "
            "0.5.23, triton 3.6, H200)",
        ),
        OpChoice(
            "fused_recurrent_gated_delta_rule_packed_decode",
            "flagos",
            is_default=True,
            reason="1.01 to 2.43 of the speed of SGLang's own alone, 1.10 and 1.14 of vanilla with 16 and 64 "
            "requests to a served model, with the other defaults (Qwen3-Next with 24 layers of 128 experts, "
            "bfloat16, SGLang 0.5.23, triton 3.6, H200)",
        ),
        _not_default(
            "fused_sigmoid_gating_delta_rule_update",
            "0.97 to 2.07 of the speed of SGLang's own alone, not measured yet in a served model "
            "(Qwen3-Next, bfloat16, SGLang 0.5.23, triton 3.6, H200)",
        ),
        OpChoice(
            "chunk_gated_delta_rule",
            "flagos",
            is_default=True,
            reason="1.44 to 1.71 of the speed of SGLang's Triton kernels alone, 1.36 and 1.60 of vanilla in "
            "prompts of a served model, with the other defaults (Qwen3-Next with 24 layers of 128 experts, "
            "bfloat16, SGLang 0.5.23, triton 3.6, H200)",
        ),
        OpChoice(
            "decode_attention",
            "flagos",
            is_default=True,
            reason="0.99 to 20.0 of the speed of SGLang's Triton kernel alone, with both ops of attention "
            "1.02 to 1.06 of the speed without them in a served model (Llama-3-8B, bfloat16, SGLang 0.5.23, "
            "triton 3.6, H200)",
        ),
        OpChoice(
            "extend_attention",
            "flagos",
            is_default=True,
            reason="1.33 to 18.0 of the speed of SGLang's Triton kernel alone, with both ops of attention "
            "1.02 to 1.06 of the speed without them in a served model (Llama-3-8B, bfloat16, SGLang 0.5.23, "
            "triton 3.6, H200)",
        ),
        _not_default("kv_cache_write", "not measured yet in a served model"),
    ),
    quarantine=QUARANTINE,
    aten=flag_gems_aten(measured_choices(), ATEN_QUARANTINE),
    environment={"GEMS_VENDOR": "nvidia"},
)

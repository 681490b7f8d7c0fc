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
            reason="1.01 to 1.56 of vanilla in served models, with the other defaults (Qwen3-30B-A3B, "
            "DeepSeek-V2-Lite, GLM-4.5-Air and gpt-oss-20b with 4 to 10 layers); at one request 1.18 where "
            "the host does not set the pace (Qwen3-30B-A3B with 24 layers; bfloat16, SGLang 0.5.23, triton "
            "3.6, H200)",
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
        _not_default(
            "causal_conv1d_fn",
            "1.34 to 1.50 of the speed of SGLang's Triton kernel alone, not measured yet in a served model "
            "(Qwen3-Next, bfloat16, SGLang 0.5.23, triton 3.6, H200)",
        ),
        _not_default(
            "causal_conv1d_update",
            "1.26 to 1.58 of the speed of SGLang's Triton kernel alone, not measured yet in a served model "
            "(Qwen3-Next, bfloat16, SGLang 0.5.23, triton 3.6, H200)",
        ),
        OpChoice(
            "fused_recurrent_gated_delta_rule_packed_decode",
            "flagos",
            is_default=True,
            reason="1.01 to 2.45 of the speed of SGLang's own alone, 0.99 to 1.17 of vanilla in a served "
            "model, with the other defaults (Qwen3-Next with 4 layers, bfloat16, SGLang 0.5.23, triton 3.6, "
            "H200)",
        ),
        _not_default("fused_sigmoid_gating_delta_rule_update", "not measured yet in a served model"),
        OpChoice(
            "chunk_gated_delta_rule",
            "flagos",
            is_default=True,
            reason="1.44 to 1.85 of the speed of SGLang's Triton kernels alone, 1.22 and 1.25 of vanilla in "
            "prompts of a served model, with the other defaults, which without it have 1.17 and 0.98 "
            "(Qwen3-Next with 4 layers, bfloat16, SGLang 0.5.23, triton 3.6, H200)",
        ),
        OpChoice(
            "decode_attention",
            "flagos",
            is_default=True,
            reason="0.99 to 20.6 of the speed of SGLang's Triton kernel alone, with both ops of attention "
            "1.01 to 1.50 of vanilla in served models (Llama-3-8B, Qwen3-30B-A3B and DeepSeek-V2-Lite with "
            "10 layers, bfloat16, SGLang 0.5.23, triton 3.6, H200)",
        ),
        OpChoice(
            "extend_attention",
            "flagos",
            is_default=True,
            reason="1.33 to 18.4 of the speed of SGLang's Triton kernel alone, with both ops of attention "
            "1.01 to 1.50 of vanilla in served models (Llama-3-8B, Qwen3-30B-A3B and DeepSeek-V2-Lite with "
            "10 layers, bfloat16, SGLang 0.5.23, triton 3.6, H200)",
        ),
        _not_default("kv_cache_write", "not measured yet in a served model"),
    ),
    quarantine=QUARANTINE,
    aten=flag_gems_aten(measured_choices(), ATEN_QUARANTINE),
    environment={"GEMS_VENDOR": "nvidia"},
)

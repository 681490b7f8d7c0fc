"""Each supported SGLang release, from its own wheel: seam, layer classes, signatures, flag, platform."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)

RELEASES = [f"0.5.{patch}" for patch in range(15, 24)]
LAST_OF_FIRST_SEAM = 17
SCRIPT = Path(__file__).parent / "exercise_layers.py"


@pytest.fixture(scope="module", params=RELEASES)
def facts(request, ask_release, tmp_path_factory) -> dict:
    """What a process saw that hooked this release and called its layers."""
    run = ask_release(request.param, SCRIPT, str(tmp_path_factory.mktemp("logs")))
    assert run.result, run.output[-3000:]
    return {"release": request.param, **run.result}


def test_the_release_is_the_one_on_the_path(facts):
    assert facts["version"] == facts["release"]


def test_the_seam_is_the_one_of_its_generation(facts):
    patch = int(facts["release"].rpartition(".")[2])
    first = patch <= LAST_OF_FIRST_SEAM
    method = "MultiPlatformOp.dispatch_forward" if first else "BaseFusedOp._resolve_forward_method"
    assert facts["seam"].endswith(method)


@pytest.mark.parametrize(
    ("layer", "module"),
    [
        ("SiluAndMul", "sglang_fl.ops.silu_and_mul"),
        ("RMSNorm", "sglang_fl.sglang_adapter.layers.rms_norm"),
        ("RotaryEmbedding", "sglang_fl.sglang_adapter.layers.rotary_embedding"),
        ("LinearScalingRotaryEmbedding", "sglang_fl.sglang_adapter.layers.rotary_embedding"),
        ("GemmaRMSNorm", "sglang_fl.sglang_adapter.layers.gemma_rms_norm"),
    ],
)
def test_a_layer_holds_its_bound_kernel_after_one_call(facts, layer, module):
    assert facts[layer]["runs"] == module


def test_float32_results_are_those_of_forward_native(facts):
    layers = ("SiluAndMul", "RMSNorm", "RotaryEmbedding", "LinearScalingRotaryEmbedding")
    assert max(facts[layer]["largest_difference"] for layer in layers) < 1e-6


def test_the_signatures_are_those_the_adapters_translate(facts):
    patch = int(facts["release"].rpartition(".")[2])
    norm = ["x", "residual", "post_residual_addition"]
    assert facts["classes"] == {
        "sglang.srt.layers.activation:SiluAndMul": ["x"],
        "sglang.srt.layers.layernorm:RMSNorm": norm + ["quant_linear"] * (patch > LAST_OF_FIRST_SEAM),
        "sglang.srt.layers.layernorm:GemmaRMSNorm": norm,
        "sglang.srt.layers.rotary_embedding.mrope:MRotaryEmbedding": [
            "positions",
            "query",
            "key",
            "fused_set_kv_buffer_arg",
        ],
        "sglang.srt.layers.rotary_embedding.base:RotaryEmbedding": [
            "positions",
            "query",
            "key",
            "offsets",
            "fused_set_kv_buffer_arg",
        ],
    }


def test_a_linear_layer_announced_to_a_norm_does_not_take_it_from_us(facts):
    assert facts["norm_before_linear"] == "sglang_fl.sglang_adapter.layers.rms_norm"


def test_the_former_flag_means_the_same_everywhere(facts):
    assert facts["flag"] == "disabled"


def test_the_cpu_platform_sets_its_defaults(facts):
    assert facts["platform"] == {
        "class": "CpuPlatform",
        "mem_fraction_static": 0.5,
        "attention_backend": "torch_native",
    }


#: The last releases that do not ask a platform whether it is CUDA: pictures to 0.5.20 (0.5.21 cannot be told
#: from them), ranks.
LAST_WITH_PICTURES_ON_CUDA, LAST_WITH_NCCL_FOR_ALL = 21, 22


def test_sglang_takes_no_platform_of_ours_for_cuda(facts):
    release = int(facts["release"].rpartition(".")[2])
    pictures = "pil" if release <= LAST_WITH_PICTURES_ON_CUDA else "auto"
    for name, answer in facts["not_cuda"].items():
        nccl = f"no-nccl-on-{name}" if release <= LAST_WITH_NCCL_FOR_ALL else None
        assert answer == [pictures, nccl]


LAST_THAT_ASKS_FOR_POOLS = 21


def test_the_pools_are_those_of_sglang_and_larger_pages_are_refused(facts):
    if int(facts["release"].rpartition(".")[2]) > LAST_THAT_ASKS_FOR_POOLS:
        assert facts["pools"] is None
    else:
        pools = ["MHATokenToKVPool", "MLATokenToKVPool"]
        assert {name: answer[:2] for name, answer in facts["pools"].items()} == {"cpu": pools, "mlu": pools}
        for name, (*_, refusal) in facts["pools"].items():
            assert refusal.startswith("--page-size 16: ")
            assert refusal.endswith(f"use --page-size 1 on {name}")


TAKEN = {
    "qk_norm": ["RMSNorm → sglang(fused_qk_norm)"],
    "qk_norm_rope": [
        "RMSNorm → sglang(fused_qk_norm_rope)",
        "RotaryEmbedding → sglang(fused_qk_norm_rope)",
    ],
    "dual_gemm": ["SiluAndMul → sglang(dual_gemm)"],
    "all_reduce": ["RMSNorm → sglang(fused_allreduce_norm)"],
}
FIRST_WITH_DUAL_GEMM = 22


@pytest.mark.parametrize("path", TAKEN)
def test_a_shortcut_that_sglang_takes_is_logged_and_taken(facts, path: str):
    if path == "dual_gemm" and int(facts["release"].rpartition(".")[2]) < FIRST_WITH_DUAL_GEMM:
        assert facts["shortcuts"]["watched"][path] == [None]
    else:
        assert facts["shortcuts"]["watched"][path] == ["fused", *TAKEN[path]]


@pytest.mark.parametrize("path", TAKEN)
def test_a_shortcut_past_an_op_that_is_named_is_not_taken(facts, path: str):
    if path == "dual_gemm" and int(facts["release"].rpartition(".")[2]) < FIRST_WITH_DUAL_GEMM:
        assert facts["shortcuts"]["off"][path] == [None]
    else:
        assert facts["shortcuts"]["off"][path] == ["layers"]


def test_a_pinned_layer_is_logged_when_it_has_run_and_keeps_its_method(facts):
    assert facts["shortcuts"]["watched"]["pinned"] == ["pinned", "SiluAndMul → sglang(pinned)"]


#: For sparse attention, graphs, compiled prefill and draft models, none of which run there.
OPEN_ON_MLU = {
    "get_default_speculative_draft_attention_backend",
    "get_dsa_kv_pool_cls",
    "get_graph_runner_cls",
    "get_piecewise_backend_cls",
}


def test_the_mlu_platform_answers_what_this_release_asks(facts):
    assert set(facts["mlu_leaves_open"]) <= OPEN_ON_MLU

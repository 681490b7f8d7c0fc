"""Each supported SGLang release, from its own wheel: seam, layer classes, signatures, flag, platform."""

from pathlib import Path

import pytest
from packaging.version import Version

from sglang_fl.sglang_adapter import releases
from sglang_fl.sglang_adapter.kernel_faults import why_wrong
from sglang_fl.sglang_adapter.releases import Range
from tests.releases.sources import RELEASES

pytestmark = pytest.mark.timeout(300)

#: What differs between releases and only these tests need to know.
QUANTISING_NORM = Range(first="0.5.18")
#: To 0.5.20 SGLang prepares pictures on CUDA whatever the platform; 0.5.21 cannot be told from them.
PICTURES_ON_CUDA = Range(last="0.5.21")
NCCL_FOR_ALL_RANKS = Range(last="0.5.22")
ASKS_FOR_POOLS = Range(last="0.5.21")
DUAL_GEMM = Range(first="0.5.22")
SCRIPT = Path(__file__).parent / "exercise_layers.py"


@pytest.fixture(scope="module", params=RELEASES)
def facts(request, ask_release, tmp_path_factory) -> dict:
    """What a process saw that hooked this release and called its layers."""
    run = ask_release(request.param, SCRIPT, str(tmp_path_factory.mktemp("logs")))
    assert run.result, run.output[-3000:]
    return {"release": request.param, **run.result}


def is_in(facts: dict, releases: Range) -> bool:
    return Version(facts["release"]) in releases


def test_the_release_is_the_one_on_the_path(facts):
    assert facts["version"] == facts["release"]


def test_the_seam_is_the_one_of_its_generation(facts):
    assert facts["seam"] == releases.seam_path(Version(facts["release"]))


@pytest.mark.parametrize(
    ("layer", "module"),
    [
        ("SiluAndMul", "sglang_fl.sglang_adapter.layers.adapter"),
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
    norm = ["x", "residual", "post_residual_addition"]
    assert facts["classes"] == {
        "sglang.srt.layers.activation:SiluAndMul": ["x"],
        "sglang.srt.layers.layernorm:RMSNorm": norm + ["quant_linear"] * is_in(facts, QUANTISING_NORM),
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


def test_the_former_flag_is_sglangs_own_in_the_releases_that_the_table_names(facts):
    assert facts["knows_flag"] == is_in(facts, releases.PIECEWISE_FLAG)


def test_a_forced_backend_reaches_the_layers_in_the_releases_that_the_table_names(facts):
    assert facts["honours_forced_backend"] == is_in(facts, releases.FORCED_BACKEND)


def test_the_cpu_platform_sets_its_defaults(facts):
    assert facts["platform"] == {
        "class": "CpuPlatform",
        "mem_fraction_static": 0.5,
        "attention_backend": "torch_native",
    }


def test_sglang_takes_no_platform_of_ours_for_cuda(facts):
    pictures = "pil" if is_in(facts, PICTURES_ON_CUDA) else "auto"
    for name, answer in facts["not_cuda"].items():
        nccl = f"no-nccl-on-{name}" if is_in(facts, NCCL_FOR_ALL_RANKS) else None
        assert answer == [pictures, nccl]


def test_the_pools_are_those_of_sglang_and_larger_pages_are_refused(facts):
    if not is_in(facts, ASKS_FOR_POOLS):
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


@pytest.mark.parametrize("path", TAKEN)
def test_a_shortcut_that_sglang_takes_is_logged_and_taken(facts, path: str):
    if path == "dual_gemm" and not is_in(facts, DUAL_GEMM):
        assert facts["shortcuts"]["watched"][path] == [None]
    else:
        assert facts["shortcuts"]["watched"][path] == ["fused", *TAKEN[path]]


@pytest.mark.parametrize("path", TAKEN)
def test_a_shortcut_past_an_op_that_is_named_is_not_taken(facts, path: str):
    if path == "dual_gemm" and not is_in(facts, DUAL_GEMM):
        assert facts["shortcuts"]["off"][path] == [None]
    else:
        assert facts["shortcuts"]["off"][path] == ["layers"]


@pytest.mark.parametrize("named", ["watched", "off"])
def test_a_kernel_that_is_wrong_in_a_release_never_runs_there(facts, named: str):
    path = "sglang.srt.models.qwen3_5.Qwen3_5AttentionDecoderLayer.forward_prepare_cuda_fused"
    ran = ["RMSNorm → sglang(fused_qk_norm_rope_gate)", "RotaryEmbedding → sglang(fused_qk_norm_rope_gate)"]
    is_wrong = why_wrong(path, Version(facts["release"])) is not None
    assert is_wrong == is_in(facts, Range(last="0.5.18"))
    if named == "watched":
        assert facts["shortcuts"][named]["gated"] == (["layers"] if is_wrong else ["fused", *ran])
    else:  # its ops are not among those that are named there
        assert facts["shortcuts"][named]["gated"][0] == ("layers" if is_wrong else "fused")


def test_a_pinned_layer_is_logged_when_it_has_run_and_keeps_its_method(facts):
    assert facts["shortcuts"]["watched"]["pinned"] == ["pinned", "SiluAndMul → sglang(pinned)"]


#: For sparse attention, graphs and compiled prefill, none of which run there.
OPEN_ON_MLU = {
    "get_dsa_kv_pool_cls",
    "get_graph_runner_cls",
    "get_piecewise_backend_cls",
}


def test_platforms_of_ours_speculate_where_the_table_says(facts):
    assert facts["speculates"] == is_in(facts, releases.SPECULATION)


def test_the_mlu_platform_answers_what_this_release_asks(facts):
    assert set(facts["mlu_leaves_open"]) <= OPEN_ON_MLU

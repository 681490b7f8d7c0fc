"""Each supported SGLang release, from its own wheel: seam, layer classes, signatures, flag, platform."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)

RELEASES = [f"0.5.{patch}" for patch in range(15, 24)]
LAST_OF_FIRST_SEAM = 17
SCRIPT = Path(__file__).parent / "exercise_layers.py"
#: The tokenizers that goes with a transformers; not every release of SGLang pins it.
TOKENIZERS = {"5.12.1": "0.22.2"}


@pytest.fixture(scope="module", params=RELEASES)
def facts(request, wheel) -> dict:
    """What a process saw that hooked this release and called its layers."""
    release = wheel("sglang", request.param)
    path = [release, *_pinned_transformers(release, request.param, wheel)]
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("SGLANG_")},
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-1000:] + done.stderr[-3000:]
    return {"release": request.param, **json.loads(lines[0].removeprefix("RESULT "))}


def _pinned_transformers(release: Path, version: str, wheel) -> list[Path]:
    """SGLang registers model types that a newer transformers has itself, so it needs its own pin."""
    metadata = (release / f"sglang-{version}.dist-info" / "METADATA").read_text()
    pin = re.search(r"^Requires-Dist: transformers==(\S+)", metadata, re.MULTILINE)[1]
    if pin == installed_version("transformers"):
        return []
    return [wheel("transformers", pin), wheel("tokenizers", TOKENIZERS[pin])]


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
        ("RMSNorm", "sglang_fl.sglang_adapter.rms_norm"),
        ("RotaryEmbedding", "sglang_fl.sglang_adapter.rotary_embedding"),
        ("LinearScalingRotaryEmbedding", "sglang_fl.sglang_adapter.rotary_embedding"),
        ("GemmaRMSNorm", "sglang.srt.layers.layernorm"),
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
        "sglang.srt.layers.rotary_embedding.base:RotaryEmbedding": [
            "positions",
            "query",
            "key",
            "offsets",
            "fused_set_kv_buffer_arg",
        ],
    }


def test_a_linear_layer_announced_to_a_norm_does_not_take_it_from_us(facts):
    assert facts["norm_before_linear"] == "sglang_fl.sglang_adapter.rms_norm"


def test_the_former_flag_means_the_same_everywhere(facts):
    assert facts["flag"] == "disabled"


def test_the_cpu_platform_sets_its_defaults(facts):
    assert facts["platform"] == {
        "class": "CpuPlatform",
        "mem_fraction_static": 0.5,
        "attention_backend": "torch_native",
    }

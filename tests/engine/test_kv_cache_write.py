"""The KV cache written by the kernel that rotates, as SGLang lets it on a GPU; here it lets it on the CPU.

transformers judges: if a key or a value were not in its slot, or in another one, attention would show it.
"""

from dataclasses import replace

import pytest

from tests.engine.fake_vendor import install_module
from tests.engine.judge import (
    Judged,
    assert_agrees,
    bench_in,
    expected_classes,
    judge,
    mistakes_in,
    visible,
)
from tests.engine.models import BY_NAME, Family

pytestmark = pytest.mark.timeout(300)

#: A plugin of SGLang's by which a rotation may write the KV cache whatever the device and its dtype.
ON_ANY_DEVICE = """
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

def load():
    target = "sglang.srt.models.utils.enable_fused_set_kv_buffer"
    HookRegistry.register(target, lambda original, forward_batch: True, HookType.AROUND)
"""

CASES = {
    **{name: (BY_NAME[name], {}) for name in ("Qwen3", "Qwen3-MoE", "GLM-4-MoE")},
    "Qwen3-MoE, by a rotation": (
        replace(BY_NAME["Qwen3-MoE"], fused=None),
        {"SGLANG_FL_PER_OP": "rotary_embedding=vendor"},
    ),
}


@pytest.fixture(scope="module", params=CASES)
def judged(request, tmp_path_factory, environment_of) -> Judged:
    family, settings = CASES[request.param]
    folder = tmp_path_factory.mktemp("written")
    bench = bench_in(folder, environment_of, **settings)
    entry = "any_device = any_device:load"
    install_module(folder / "vendor", "any_device", ON_ANY_DEVICE, "sglang.srt.plugins", entry)
    return judge(replace(family, writes_cache=True), folder, bench)


def ran(family: Family) -> set[str]:
    return {f"[OOT-DISPATCH] {name} → vendor(vendor.mistaken)" for name in expected_classes(family)}


def test_it_agrees_with_transformers_also_behind_a_cached_prefix(judged: Judged):
    assert judged.dispatched == ran(judged.family) | {"[OOT-DISPATCH] RadixAttention → sglang(torch_native)"}
    assert min(judged.cached_tokens) >= 30
    for what in ("prompts", "followers", "again", "weights"):
        assert_agrees(judged.differences[what])


def test_attention_reads_what_it_has_written(judged: Judged):
    kept = [name for name in mistakes_in(judged.family) if name.endswith(".cache_kept")]
    assert len(kept) == 1
    assert visible(judged, kept[0]) > 0.1
